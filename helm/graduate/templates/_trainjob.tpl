{{/* Kubeflow Trainer: a runtime of our own (namespaced) and a TrainJob that uses it. The trainer injects torchrun's
environment into the container `node`, so fit runs there; build runs before it, evaluation and publishing after. */}}
{{- define "graduate.trainJob" -}}
{{- $v := .Values.training }}
{{- $full := printf "%s-training" (include "graduate.fullname" .) }}
{{- $context := dict "root" . "component" "training" "pod" $v.pod }}
{{- $mounts := list (dict "name" "adapters" "mountPath" "/var/lib/graduate/adapters") (dict "name" "tmp" "mountPath" "/tmp") }}
{{- $fit := include "graduate.trainingFit" . | fromYamlArray }}
{{- $script := list "set -e" (join " " $fit) (join " " (include "graduate.trainingEvaluate" . | fromYamlArray)) }}
{{- if $v.publish }}
{{- $script = append $script (join " " (include "graduate.trainingPublish" . | fromYamlArray)) }}
{{- if .Values.state.registryUrl }}
{{- $script = append $script (printf "python /etc/graduate/sync/sync_adapters.py --once --from /var/lib/graduate/adapters --to %s" .Values.state.registryUrl) }}
{{- end }}
{{- end }}
{{- $script := join "\n" $script | replace "$(RUN)" "${RUN}" }}
{{- $node := include "graduate.trainingStep" (dict "root" . "name" "node" "words" (list "sh" "-c" $script)) | fromYaml }}
{{- if .Values.state.registryUrl }}
{{- $_ := set $node "volumeMounts" (append $node.volumeMounts (dict "name" "sync-script" "mountPath" "/etc/graduate/sync" "readOnly" true)) }}
{{- if .Values.secrets.objectStore }}
{{- $_ := set $node "envFrom" (append ($node.envFrom | default list) (dict "secretRef" (dict "name" .Values.secrets.objectStore))) }}
{{- end }}
{{- end }}
---
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainingRuntime
metadata:
  name: {{ $full }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "graduate.labels" $context | nindent 4 }}
    trainer.kubeflow.org/framework: torch
spec:
  mlPolicy:
    numNodes: 1
    torch: {}
  template:
    spec:
      replicatedJobs:
        - name: node
          template:
            metadata:
              labels:
                trainer.kubeflow.org/trainjob-ancestor-step: trainer
            spec:
              backoffLimit: {{ $v.backoffLimit }}
              template:
                metadata:
                  {{- include "graduate.podMeta" $context | nindent 18 }}
                spec:
                  restartPolicy: Never
                  {{- include "graduate.podHead" $context | nindent 18 }}
                  initContainers:
                    {{- if .Values.state.registryUrl }}
                    - {{- include "graduate.syncContainer" (dict "root" . "from" .Values.state.registryUrl "to" "/var/lib/graduate/adapters" "mounts" $mounts "once" true) | nindent 22 }}
                    {{- end }}
                    - {{- include "graduate.trainingStep" (dict "root" . "name" "build" "words" (include "graduate.trainingBuild" . | fromYamlArray)) | nindent 22 }}
                  containers:
                    - {{- toYaml $node | nindent 22 }}
                  volumes:
                    {{- include "graduate.trainingVolumes" . | nindent 20 }}
---
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: {{ $full }}-{{ sha256sum (toYaml $node) | trunc 8 }}
  namespace: {{ .Release.Namespace }}
  {{- include "graduate.meta" $context | nindent 2 }}
spec:
  runtimeRef:
    apiGroup: trainer.kubeflow.org
    kind: TrainingRuntime
    name: {{ $full }}
  trainer:
    numNodes: 1
    numProcPerNode: {{ $v.processes }}
{{- end }}
