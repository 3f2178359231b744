{{- define "ecs-exporter.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "ecs-exporter.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ecs-exporter.labels" -}}
{{ include "ecs-exporter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The configuration file: what the values say, over what the other values imply. */}}
{{- define "ecs-exporter.config" -}}
{{- $web := dict "listen_addresses" (list (printf "0.0.0.0:%d" (int .Values.port))) }}
{{- $collectors := dict "perf" (dict "enabled" .Values.perf.enabled) "stats" (dict "enabled" .Values.stats.enabled) }}
{{- $implied := dict "web" $web "collectors" $collectors }}
{{- mergeOverwrite (deepCopy .Values.config) $implied | toYaml }}
{{- end }}
