{{/*
A GPU engine with many adapters: StatefulSet with a volume a pod for weights and adapters, two Services, a budget.
Takes root, kind ("lorax" or "vllm"), values, model (one of values.models, its keys stand over the values').
*/}}
{{- define "graduate.engine" -}}
{{- $v := mergeOverwrite (deepCopy (omit .values "models")) (deepCopy (omit .model "name" "model")) }}
{{- $root := .root }}
{{- $component := printf "%s-%s" .kind .model.name }}
{{- $full := printf "%s-%s" (include "graduate.fullname" .root) $component }}
{{- $context := dict "root" .root "component" $component "pod" $v.pod }}
{{- $isLorax := eq .kind "lorax" }}
{{- include "graduate.serviceAccount" $context }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $full }}
  namespace: {{ $root.Release.Namespace }}
  {{- include "graduate.meta" $context | nindent 2 }}
spec:
  replicas: {{ $v.replicas }}
  revisionHistoryLimit: 5
  serviceName: {{ $full }}-pods
  podManagementPolicy: Parallel
  selector:
    matchLabels:
      {{- include "graduate.selector" $context | nindent 6 }}
  template:
    metadata:
      {{- include "graduate.podMeta" $context | nindent 6 }}
    spec:
      {{- include "graduate.podHead" (merge (dict "spread" true) $context) | nindent 6 }}
      terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
      initContainers:
        # The registry's versions, under their wire ids `name/version`, where the engine looks for adapters.
        {{- $source := $root.Values.state.registryUrl | default "/registry" }}
        {{- $mounts := list (dict "name" "data" "mountPath" "/data") (dict "name" "tmp" "mountPath" "/tmp") }}
        {{- if not $root.Values.state.registryUrl }}
        {{- $mounts = append $mounts (dict "name" "state" "mountPath" "/registry" "subPath" "adapters" "readOnly" true) }}
        {{- end }}
        - {{- include "graduate.syncContainer" (dict "root" $root "from" $source "to" "/data" "mounts" $mounts) | nindent 10 }}
        {{- with $v.pod.extraInitContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      containers:
        - name: {{ .kind }}
          image: {{ include "graduate.image" (dict "root" $root "image" $v.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            {{- if $isLorax }}
            - --model-id
            {{- else }}
            - --model
            {{- end }}
            - {{ .model.model | quote }}
            - --port
            - {{ $v.port | quote }}
            {{- if $isLorax }}
            - --hostname
            {{- else }}
            - --host
            {{- end }}
            - "0.0.0.0"
            {{- include "graduate.flags" $v.flags | nindent 12 }}
          env:
            - {name: HOME, value: /tmp}
            - {name: TRITON_CACHE_DIR, value: /tmp/triton}
            {{- if $isLorax }}
            # Base weights are cached here, and a local adapter id is looked up here: `tickets/3` is /data/tickets/3.
            - {name: HUGGINGFACE_HUB_CACHE, value: /data}
            {{- else }}
            - {name: HF_HOME, value: /data/hub}
            - {name: VLLM_ALLOW_RUNTIME_LORA_UPDATING, value: "1"}
            - {name: VLLM_PLUGINS, value: lora_filesystem_resolver}
            # A model that is not known is looked up here as an adapter: `tickets/3` is /data/tickets/3.
            - {name: VLLM_LORA_RESOLVER_CACHE_DIR, value: /data}
            - {name: VLLM_NO_USAGE_STATS, value: "1"}
            {{- end }}
            {{- with $v.pod.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- include "graduate.envFrom" (dict "names" (list $root.Values.secrets.huggingFace) "more" $v.pod.extraEnvFrom) | nindent 10 }}
          ports:
            - {name: http, containerPort: {{ $v.port }}}
          # LoRAX's /startup generates a token; vLLM answers /health only when its engine runs.
          startupProbe:
            httpGet: {path: {{ ternary "/startup" "/health" $isLorax }}, port: http}
            periodSeconds: 10
            timeoutSeconds: 30
            failureThreshold: {{ max 1 (div $v.startupSeconds 10) }}
          livenessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 15
            timeoutSeconds: 30
            failureThreshold: 4
          readinessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 5
            timeoutSeconds: 10
          lifecycle:
            preStop:
              exec: {command: [sleep, "10"]}
          securityContext:
            {{- include "graduate.securityContext" $v.pod | nindent 12 }}
          resources:
            {{- toYaml $v.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: shm, mountPath: /dev/shm}
            - {name: tmp, mountPath: /tmp}
            {{- with $v.pod.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
        {{- with $v.pod.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        - {{- include "graduate.syncVolume" $root | nindent 10 }}
        {{- if not $root.Values.state.registryUrl }}
        - name: state
          {{- if include "graduate.hasState" $root }}
          persistentVolumeClaim: {claimName: {{ include "graduate.stateClaim" $root }}}
          {{- else }}
          emptyDir: {}
          {{- end }}
        {{- end }}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $v.shmSize }}}
        - name: tmp
          emptyDir: {}
        {{- if not $v.persistence.enabled }}
        - name: data
          emptyDir: {}
        {{- else if $v.persistence.existingClaim }}
        - name: data
          persistentVolumeClaim: {claimName: {{ $v.persistence.existingClaim }}}
        {{- end }}
        {{- with $v.pod.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- if and $v.persistence.enabled (not $v.persistence.existingClaim) }}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Delete}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "graduate.selector" $context | nindent 10 }}
        {{- with $v.persistence.annotations }}
        annotations:
          {{- toYaml . | nindent 10 }}
        {{- end }}
      spec:
        accessModes: {{ toYaml ($v.persistence.accessModes | default (list "ReadWriteOnce")) | nindent 10 }}
        {{- with $v.persistence.storageClassName }}
        storageClassName: {{ ternary "" . (eq . "-") | quote }}
        {{- end }}
        resources:
          requests: {storage: {{ $v.persistence.size }}}
  {{- end }}
{{- range $headless := list false true }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $full }}{{ if $headless }}-pods{{ end }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "graduate.labels" $context | nindent 4 }}
    {{- if not $headless }}
    graduate/scrape: "true"
    {{- end }}
  {{- with merge (dict) ($v.service.annotations | default dict) $root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if $headless }}
  clusterIP: None
  publishNotReadyAddresses: true
  {{- else }}
  type: {{ $v.service.type }}
  {{- end }}
  selector:
    {{- include "graduate.selector" $context | nindent 4 }}
  ports:
    - {name: http, port: {{ $v.port }}, targetPort: http, protocol: TCP, appProtocol: http}
{{- end }}
{{- include "graduate.pdb" (dict "root" $root "component" $component "name" $full "pods" (int $v.replicas) "budget" $v.podDisruptionBudget) }}
{{- end }}
