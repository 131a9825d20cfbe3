{{/* A PodDisruptionBudget, when more than one pod runs: for a single one it would stop every node drain. */}}
{{- define "graduate.pdb" -}}
{{- if and .budget.enabled (gt .pods 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "graduate.meta" (dict "root" .root "component" .component) | nindent 2 }}
spec:
  maxUnavailable: {{ .budget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "graduate.selector" (dict "root" .root "component" .component) | nindent 6 }}
{{- end }}
{{- end }}
