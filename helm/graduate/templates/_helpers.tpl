{{/* Names and labels. */}}
{{- define "graduate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "graduate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels that selectors use; the chart's version is never among them. Takes (dict "root" $ "component" "router"). */}}
{{- define "graduate.selector" -}}
app.kubernetes.io/name: {{ include "graduate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* All labels of an object. */}}
{{- define "graduate.labels" -}}
{{ include "graduate.selector" . }}
app.kubernetes.io/part-of: graduate
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata's labels and annotations. Takes root, component, and annotations of its own. */}}
{{- define "graduate.meta" -}}
labels:
  {{- include "graduate.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One image. Takes root and image; own images have no registry or tag of their own unless given. */}}
{{- define "graduate.image" -}}
{{- $registry := .image.registry | default .root.Values.image.registry }}
{{- $tag := .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") }}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name $tag }}{{ end }}
{{- end }}

{{/* Whether a component's service account is made here, and its name. Takes root, component, pod. */}}
{{- define "graduate.serviceAccountName" -}}
{{- $account := .pod.serviceAccount | default dict }}
{{- if $account.name }}{{ $account.name }}{{ else if eq (toString $account.create) "false" }}default{{ else }}{{ include "graduate.fullname" .root }}-{{ .component }}{{ end }}
{{- end }}

{{- define "graduate.serviceAccount" -}}
{{- $account := .pod.serviceAccount | default dict }}
{{- if ne (toString $account.create) "false" }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "graduate.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "graduate.meta" (dict "root" .root "component" .component "annotations" $account.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{/* Restricted Pod Security Standard; what a component gives is laid over it. */}}
{{- define "graduate.podSecurityContext" -}}
{{- $base := dict "runAsNonRoot" true "runAsUser" 10001 "runAsGroup" 10001 "fsGroup" 10001 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- toYaml (mergeOverwrite $base (deepCopy (.podSecurityContext | default dict))) }}
{{- end }}

{{- define "graduate.securityContext" -}}
{{- $base := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) }}
{{- toYaml (mergeOverwrite $base (deepCopy (.securityContext | default dict))) }}
{{- end }}

{{/* The first lines of a pod's spec. Takes root, component, pod, spread (bool), token (bool), account (bool). */}}
{{- define "graduate.podHead" -}}
serviceAccountName: {{ include "graduate.serviceAccountName" . }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  {{- include "graduate.podSecurityContext" .pod | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" "schedulerName" "hostAliases" }}
{{- with get $.pod $key }}
{{ $key }}: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- if .pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .pod.topologySpreadConstraints | nindent 2 }}
{{- else if .spread }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "graduate.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Labels and annotations of a pod template. Takes root, component, pod, checksums. */}}
{{- define "graduate.podMeta" -}}
labels:
  {{- include "graduate.labels" . | nindent 2 }}
  {{- with .pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.checksums | default dict) (.pod.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Environment that every process of ours has: a writable place for caches, no telemetry, no bytecode. */}}
{{- define "graduate.env" -}}
- {name: HOME, value: /tmp}
- {name: TMPDIR, value: /tmp}
- {name: XDG_CACHE_HOME, value: /tmp/cache}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
- {name: DO_NOT_TRACK, value: "1"}
{{- end }}

{{- define "graduate.storeEnv" -}}
{{- with .Values.state.s3Endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* envFrom of secrets; empty names are left out. Takes (dict "names" (list …) "more" list). */}}
{{- define "graduate.envFrom" -}}
{{- $from := list }}
{{- range .names }}{{- if . }}{{- $from = append $from (dict "secretRef" (dict "name" .)) }}{{- end }}{{- end }}
{{- with concat $from (.more | default list) }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Claims. */}}
{{- define "graduate.stateClaim" -}}
{{- .Values.state.claim.existingClaim | default (printf "%s-state" (include "graduate.fullname" .)) }}
{{- end }}

{{- define "graduate.hasState" -}}
{{- if or .Values.state.claim.create .Values.state.claim.existingClaim }}true{{ end }}
{{- end }}

{{/* The shared folders' volumes: the claim, a copy of the registry when it is in a store, scratch without either. */}}
{{- define "graduate.stateVolumes" -}}
- name: state
  {{- if include "graduate.hasState" . }}
  persistentVolumeClaim: {claimName: {{ include "graduate.stateClaim" . }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- if .Values.state.registryUrl }}
- name: adapters
  emptyDir: {}
{{- end }}
- name: tmp
  emptyDir: {}
{{- end }}

{{/* Mounts of shared folders under the home. Takes root and folders: a list of (dict "name" "traffic" "write" true). */}}
{{- define "graduate.stateMounts" -}}
{{- range .folders }}
- name: {{ if and (eq .name "adapters") $.root.Values.state.registryUrl }}adapters{{ else }}state{{ end }}
  mountPath: /var/lib/graduate/{{ .name }}
  {{- if not (and (eq .name "adapters") $.root.Values.state.registryUrl) }}
  subPath: {{ .name }}
  {{- end }}
  {{- if not .write }}
  readOnly: true
  {{- end }}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* Where the policy comes from. */}}
{{- define "graduate.policyConfigMap" -}}
{{- .Values.policy.existingConfigMap | default (printf "%s-policy" (include "graduate.fullname" .)) }}
{{- end }}

{{- define "graduate.rolloutsConfigMap" -}}
{{ include "graduate.fullname" . }}-rollouts
{{- end }}

{{/* One folder with policy.yaml and keys.yaml: no subPath, so that the kubelet's swap of ..data reaches the process. */}}
{{- define "graduate.policyVolume" -}}
name: policy
projected:
  sources:
    - configMap:
        name: {{ .configMap }}
        items: [{key: policy.yaml, path: policy.yaml}]
    {{- with .root.Values.secrets.routerKeys }}
    - secret:
        name: {{ . }}
        items: [{key: keys.yaml, path: keys.yaml}]
    {{- end }}
{{- end }}

{{/* Address of the first student engine that runs. */}}
{{- define "graduate.studentUrl" -}}
{{- $full := include "graduate.fullname" . }}
{{- if .Values.embedded.enabled }}http://{{ $full }}-student:{{ .Values.embedded.port }}
{{- else if .Values.lorax.enabled }}http://{{ $full }}-lorax-{{ (first .Values.lorax.models).name }}:{{ .Values.lorax.port }}
{{- else if .Values.vllm.enabled }}http://{{ $full }}-vllm-{{ (first .Values.vllm.models).name }}:{{ .Values.vllm.port }}
{{- else }}http://no-student-engine.invalid{{ end }}
{{- end }}

{{- define "graduate.policyText" -}}
{{- .Values.policy.text | replace "${STUDENT_URL}" (include "graduate.studentUrl" .) }}
{{- end }}

{{/* A number is a float in helm 4 and text in helm 3 (json.Number): tests on 0 go through int everywhere. */}}
{{/* Flags as arguments: true is the bare flag, false is left out, a list is the flag again and again. */}}
{{- define "graduate.flags" -}}
{{- range $key, $value := . }}
{{- if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s" $key | quote }}
- {{ toString . | quote }}
{{- end }}
{{- else if kindIs "bool" $value }}
{{- if $value }}
- {{ printf "--%s" $key | quote }}
{{- end }}
{{- else }}
- {{ printf "--%s" $key | quote }}
- {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value | quote }}{{ else }}{{ toString $value | quote }}{{ end }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the values together do not allow. */}}
{{- define "graduate.validate" -}}
{{- if and .Values.router.enabled (not .Values.router.open) (not .Values.secrets.routerKeys) }}
{{- fail "router: give secrets.routerKeys (a Secret with keys.yaml), or say router.open=true to let callers in without keys" }}
{{- end }}
{{- if and (or .Values.router.ingress.enabled .Values.router.httpRoute.enabled) (not .Values.secrets.routerKeys) }}
{{- fail "router.ingress and router.httpRoute need secrets.routerKeys: without keys everybody could spend the teacher's money" }}
{{- end }}
{{- if and .Values.router.httpRoute.enabled (not .Values.router.httpRoute.parentRefs) }}
{{- fail "router.httpRoute.parentRefs: name a Gateway" }}
{{- end }}
{{- if and .Values.router.ship.enabled (not .Values.router.ship.to) }}
{{- fail "router.ship.to: say where the traffic log goes, such as s3://bucket/traffic" }}
{{- end }}
{{- if and .Values.postgresql.enabled (not .Values.postgresql.existingSecret) }}
{{- fail "postgresql.existingSecret: make a Secret with the key `password`; there is no default one" }}
{{- end }}
{{- if and .Values.postgresql.enabled .Values.monitor.database.existingSecret }}
{{- fail "postgresql.enabled and monitor.database.existingSecret: choose one database" }}
{{- end }}
{{- if and .Values.training.enabled (not .Values.training.route) }}
{{- fail "training.route: name the route of the policy to train" }}
{{- end }}
{{- if and .Values.training.enabled (not (include "graduate.hasState" .)) }}
{{- fail "training needs state.claim: it reads the traffic log there and keeps datasets and runs" }}
{{- end }}
{{- if and .Values.router.autoscaling.enabled (eq 0 (add (int .Values.router.autoscaling.targetCPU) (int .Values.router.autoscaling.targetInFlight) | int)) }}
{{- fail "router.autoscaling: give targetCPU or targetInFlight" }}
{{- end }}
{{- $names := list }}
{{- range concat .Values.lorax.models .Values.vllm.models }}{{ $names = append $names .name }}{{ end }}
{{- if ne (len $names) (len (uniq $names)) }}
{{- fail "lorax.models and vllm.models: every name may stand once" }}
{{- end }}
{{- end }}
