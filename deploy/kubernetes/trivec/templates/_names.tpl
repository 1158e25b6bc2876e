{{- define "trivec.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* At most 50 characters, so that `-headless` still makes a name. */}}
{{- define "trivec.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "trivec.name" .) .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "trivec.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "trivec.selectorLabels" -}}
app.kubernetes.io/name: {{ include "trivec.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trivec.labels" -}}
{{ include "trivec.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "trivec.image" -}}
{{- $suffix := ternary "-cuda" "" .Values.gpu.enabled -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default (print .Chart.AppVersion $suffix) .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "trivec.serviceAccount" -}}
{{ default (ternary (include "trivec.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- /* Whether pods see the versions of `models` alone, not the whole repository. */}}
{{- define "trivec.pinned" -}}
{{- if and .Values.models (eq .Values.server.modelControlMode "none") }}true{{ end }}
{{- end }}

{{- /* Whether a config.pbtxt of the values is used. */}}
{{- define "trivec.configured" -}}
{{- range .Values.models }}{{ if .config }}true{{ end }}{{ end }}
{{- end }}

{{- /* What no container needs, it does not get: the restricted Pod Security Standard, and a read-only root. */}}
{{- define "trivec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* What the schema cannot tell. */}}
{{- define "trivec.check" -}}
{{- $names := list }}
{{- range .Values.models }}
{{- if has .name $names }}{{ fail (printf "models: two are named %q; give each a name of its own" .name) }}{{ end }}
{{- if and (eq .source "m3-mini") .revision }}{{ fail "models: m3-mini has no revisions: leave `revision` empty" }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- if and (eq .Values.server.modelControlMode "explicit") (not .Values.management.enabled) }}
{{- fail "server.modelControlMode: explicit loads models by calls of management: set management.enabled" }}
{{- end }}
{{- if and .Values.tls.enabled .Values.probes.readinessService }}
{{- fail "probes.readinessService: the kubelet's gRPC probe speaks no TLS; with tls.enabled readiness is asked over HTTP, for all models" }}
{{- end }}
{{- if and (not .Values.models) (not .Values.bucket.enabled) (or (eq .Values.storage.kind "emptyDir") (not .Values.storage.claim.existingName)) }}
{{- fail "models is empty, and nothing else fills the repository: enable `bucket`, or name a filled storage.claim.existingName" }}
{{- end }}
{{- end }}
