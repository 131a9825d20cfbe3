{{/* The sidecar that keeps a copy of the registry: an init container that goes on running, so that the first copy is
there before the engine starts. Takes root, from, to, mounts (list), and once (bool) for jobs. */}}
{{- define "graduate.syncContainer" -}}
name: adapter-sync
image: {{ include "graduate.image" (dict "root" .root "image" .root.Values.adapterSync.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- if not .once }}
restartPolicy: Always
{{- end }}
command: [python, /etc/graduate/sync/sync_adapters.py]
args:
  - --from
  - {{ .from | quote }}
  - --to
  - {{ .to | quote }}
  {{- if .once }}
  - --once
  {{- else }}
  - --every
  - {{ .root.Values.adapterSync.everySeconds | quote }}
  - --port
  - {{ .root.Values.adapterSync.port | quote }}
  {{- end }}
env:
  {{- include "graduate.env" .root | nindent 2 }}
  {{- include "graduate.storeEnv" .root | nindent 2 }}
{{- include "graduate.envFrom" (dict "names" (list .root.Values.secrets.objectStore)) }}
{{- if not .once }}
ports:
  - {name: sync, containerPort: {{ .root.Values.adapterSync.port }}}
startupProbe:
  httpGet: {path: /ready, port: sync}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /health, port: sync}
  periodSeconds: 30
readinessProbe:
  httpGet: {path: /ready, port: sync}
  periodSeconds: 15
{{- end }}
securityContext:
  {{- include "graduate.securityContext" dict | nindent 2 }}
resources:
  {{- toYaml .root.Values.adapterSync.resources | nindent 2 }}
volumeMounts:
  - {name: sync-script, mountPath: /etc/graduate/sync, readOnly: true}
  {{- toYaml .mounts | nindent 2 }}
{{- end }}

{{- define "graduate.syncVolume" -}}
name: sync-script
configMap:
  name: {{ include "graduate.fullname" . }}-sync
{{- end }}
