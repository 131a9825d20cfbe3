{{/* Training's steps as containers of one pod, each a command of `graduate train`: build, fit, evaluate, publish, and
push when the registry is in a store. Steps of a Job run one after another as init containers; the last is the main one. */}}
{{- define "graduate.trainingFit" -}}
{{- $v := .Values.training }}
{{- if gt (int $v.processes) 1 }}
- torchrun
{{- if ne $v.mode "trainjob" }}
# Kubeflow Trainer gives torchrun its numbers by the environment (PET_*); elsewhere they are said here.
- --standalone
- --nproc-per-node={{ $v.processes }}
{{- end }}
- --no-python
{{- end }}
- graduate
- train
- fit
- --home=/var/lib/graduate
- {{ printf "--model=%s" $v.model | quote }}
- --run-folder=/var/lib/graduate/runs/{{ $v.route }}-$(RUN)
{{- range $key, $value := $v.set }}
- {{ printf "--set=%s=%s" $key (kindIs "float64" $value | ternary (trimSuffix ".0" (toString $value)) (toString $value)) | quote }}
{{- end }}
{{- end }}

{{- define "graduate.trainingStep" -}}
name: {{ .name }}
image: {{ include "graduate.image" (dict "root" .root "image" .root.Values.training.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [{{ first .words }}]
args:
  {{- toYaml (rest .words) | nindent 2 }}
env:
  {{- include "graduate.env" .root | nindent 2 }}
  - {name: MPLCONFIGDIR, value: /tmp/matplotlib}
  - {name: HF_HOME, value: /var/lib/graduate/models/hub}
  # One run folder a job: a pod that starts again goes on with the run of the one before.
  - name: RUN
    valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
  {{- if .root.Values.monitor.database.existingSecret }}
  - name: GRADUATE_TRAIN_BUILD_DATABASE
    valueFrom:
      secretKeyRef: {name: {{ .root.Values.monitor.database.existingSecret }}, key: {{ .root.Values.monitor.database.key }}}
  {{- else if .root.Values.postgresql.enabled }}
  - {name: GRADUATE_TRAIN_BUILD_DATABASE, value: "postgresql+psycopg://graduate@{{ include "graduate.fullname" .root }}-postgresql:5432/graduate"}
  - name: PGPASSWORD
    valueFrom:
      secretKeyRef: {name: {{ .root.Values.postgresql.existingSecret }}, key: password}
  {{- end }}
  {{- with .root.Values.training.pod.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "graduate.envFrom" (dict "names" (list .root.Values.secrets.teacher .root.Values.secrets.huggingFace) "more" .root.Values.training.pod.extraEnvFrom) }}
securityContext:
  {{- include "graduate.securityContext" .root.Values.training.pod | nindent 2 }}
resources:
  {{- toYaml .root.Values.training.resources | nindent 2 }}
volumeMounts:
  - {name: home, mountPath: /var/lib/graduate}
  - {name: policy, mountPath: /etc/graduate/policy, readOnly: true}
  {{- include "graduate.stateMounts" (dict "root" .root "folders" (list (dict "name" "traffic") (dict "name" "adapters" "write" true) (dict "name" "datasets" "write" true) (dict "name" "runs" "write" true) (dict "name" "models" "write" true))) | nindent 2 }}
  {{- with .root.Values.training.pod.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What a pod of training has beside its containers. */}}
{{- define "graduate.trainingVolumes" -}}
- name: home
  emptyDir: {}
- {{- include "graduate.policyVolume" (dict "root" . "configMap" (include "graduate.policyConfigMap" .)) | nindent 2 }}
{{ include "graduate.stateVolumes" . }}
{{- if .Values.state.registryUrl }}
- {{- include "graduate.syncVolume" . | nindent 2 }}
{{- end }}
{{- with .Values.training.pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Words of the steps other than fit. */}}
{{- define "graduate.trainingBuild" -}}
- graduate
- train
- build
- --home=/var/lib/graduate
- --policy=/etc/graduate/policy/policy.yaml
- --route={{ .Values.training.route }}
- --since={{ .Values.training.since }}
{{- end }}
{{- define "graduate.trainingEvaluate" -}}
- graduate
- train
- evaluate
- --home=/var/lib/graduate
- --run=/var/lib/graduate/runs/{{ .Values.training.route }}-$(RUN)
{{- end }}
{{- define "graduate.trainingPublish" -}}
- graduate
- train
- publish
- --home=/var/lib/graduate
- --run=/var/lib/graduate/runs/{{ .Values.training.route }}-$(RUN)
{{- end }}

{{/* The pod template of Job and CronJob. */}}
{{- define "graduate.trainingPod" -}}
{{- $context := dict "root" . "component" "training" "pod" .Values.training.pod }}
{{- $mounts := list (dict "name" "adapters" "mountPath" "/var/lib/graduate/adapters") (dict "name" "tmp" "mountPath" "/tmp") }}
{{- $steps := list (dict "name" "build" "words" (include "graduate.trainingBuild" . | fromYamlArray)) (dict "name" "fit" "words" (include "graduate.trainingFit" . | fromYamlArray)) (dict "name" "evaluate" "words" (include "graduate.trainingEvaluate" . | fromYamlArray)) }}
{{- if .Values.training.publish }}
{{- $steps = append $steps (dict "name" "publish" "words" (include "graduate.trainingPublish" . | fromYamlArray)) }}
{{- end }}
{{- $push := and .Values.training.publish .Values.state.registryUrl }}
metadata:
  {{- include "graduate.podMeta" $context | nindent 2 }}
spec:
  restartPolicy: Never
  {{- include "graduate.podHead" $context | nindent 2 }}
  initContainers:
    {{- with .Values.training.pod.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if .Values.state.registryUrl }}
    - {{- include "graduate.syncContainer" (dict "root" . "from" .Values.state.registryUrl "to" "/var/lib/graduate/adapters" "mounts" $mounts "once" true) | nindent 6 }}
    {{- end }}
    {{- range ternary $steps (initial $steps) (not (empty $push)) }}
    - {{- include "graduate.trainingStep" (merge (dict "root" $) .) | nindent 6 }}
    {{- end }}
  containers:
    {{- if $push }}
    - {{- include "graduate.syncContainer" (dict "root" . "from" "/var/lib/graduate/adapters" "to" .Values.state.registryUrl "mounts" $mounts "once" true) | replace "name: adapter-sync" "name: push" | nindent 6 }}
    {{- else }}
    - {{- include "graduate.trainingStep" (merge (dict "root" $) (last $steps)) | nindent 6 }}
    {{- end }}
    {{- with .Values.training.pod.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "graduate.trainingVolumes" . | nindent 4 }}
{{- end }}
