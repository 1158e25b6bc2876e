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

{{- /* The container that pulls a model, by the model's name. */}}
{{- define "trivec.pullName" -}}
pull-{{ . | lower | replace "." "-" | replace "_" "-" | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* What the schema cannot tell. */}}
{{- define "trivec.check" -}}
{{- $names := list }}
{{- $pulls := dict }}
{{- range .Values.models }}
{{- $pull := include "trivec.pullName" .name }}
{{- if has .name $names }}{{ fail (printf "models: two are named %q; give each a name of its own" .name) }}{{ end }}
{{- if and (eq .source "m3-mini") .revision }}{{ fail "models: m3-mini has no revisions: leave `revision` empty" }}{{ end }}
{{- if hasKey $pulls $pull }}{{ fail (printf "models: the containers that pull %q and %q would both be named %s; rename one" (get $pulls $pull) .name $pull) }}{{ end }}
{{- $names = append $names .name }}
{{- $_ := set $pulls $pull .name }}
{{- end }}
{{- include "trivec.checkArguments" . }}
{{- include "trivec.checkNetwork" . }}
{{- if and (eq .Values.server.modelControlMode "explicit") (not .Values.management.enabled) }}
{{- fail "server.modelControlMode: explicit loads models by calls of management: set management.enabled" }}
{{- end }}
{{- include "trivec.checkProbes" . }}
{{- if and (not .Values.models) (not .Values.bucket.enabled) (or (eq .Values.storage.kind "emptyDir") (not .Values.storage.claim.existingName)) }}
{{- fail "models is empty, and nothing else fills the repository: enable `bucket`, or name a filled storage.claim.existingName" }}
{{- end }}
{{- end }}

{{- /* An argument that is given twice counts as the later one, and what else the chart makes of it would not fit. */}}
{{- define "trivec.checkArguments" -}}
{{- $own := list "model-repository" "model-control-mode" "default-model" "host" "grpc-port" "metrics-host" "metrics-port" "drain-pause-s" "drain-grace-s" "tls-certificate" "tls-private-key" "tls-client-ca" "allow-insecure" "access-file" "management" "management-host" "management-port" "cache-config" }}
{{- range .Values.server.extraArgs }}
{{- $name := regexFind "^--[a-z0-9-]+" . | trimPrefix "--" }}
{{- if has ($name | trimPrefix "no-") $own }}
{{- fail (printf "server.extraArgs: the chart gives --%s itself; set the value for it (drain, tls, access, management, cache, server)" $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Who is let in, and what the pods must reach. */}}
{{- define "trivec.checkNetwork" -}}
{{- if and (ne .Values.service.type "ClusterIP") (not .Values.tls.enabled) (not .Values.service.allowPlainText) }}
{{- fail (printf "service.type: %s lets in callers from outside the cluster, in plain text: set tls.enabled, or service.allowPlainText where the balancer ends TLS" .Values.service.type) }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}
{{- $wants := list }}
{{- if hasPrefix "redis," .Values.cache.config }}{{ $wants = append $wants "cache.config" }}{{ end }}
{{- if hasKey .Values.server.options "otlp-endpoint" }}{{ $wants = append $wants "server.options.otlp-endpoint" }}{{ end }}
{{- with .Values.pull.endpoint }}
{{- $port := regexFind ":[0-9]+" (urlParse .).host }}
{{- if and $.Values.models (or (and $port (ne $port ":443")) (and (not $port) (hasPrefix "http:" .))) }}{{ $wants = append $wants "pull.endpoint" }}{{ end }}
{{- end }}
{{- with $wants }}
{{- fail (printf "networkPolicy: pods may reach DNS and port 443 alone, and %s needs more: name it in networkPolicy.egress" (join ", " .)) }}
{{- end }}
{{- end }}
{{- end }}
