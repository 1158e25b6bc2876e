{{- /* The arguments of `trivec serve`. */}}
{{- define "trivec.serveArgs" -}}
- serve
- --model-repository=/models
- --model-control-mode={{ .Values.server.modelControlMode }}
{{- range .Values.server.loadModels }}
- {{ print "--load-model=" . | quote }}
{{- end }}
{{- with .Values.server.defaultModel }}
- {{ print "--default-model=" . | quote }}
{{- end }}
- {{ print "--host=" .Values.server.host | quote }}
- --grpc-port=8001
{{- /* The metrics endpoint takes an address without brackets. */}}
- {{ print "--metrics-host=" (.Values.server.host | trimPrefix "[" | trimSuffix "]") | quote }}
- --metrics-port=8002
- --drain-pause-s={{ .Values.drain.pauseSeconds }}
- --drain-grace-s={{ .Values.drain.graceSeconds }}
{{- if .Values.tls.enabled }}
- --tls-certificate=/etc/trivec/tls/tls.crt
- --tls-private-key=/etc/trivec/tls/tls.key
{{- if .Values.tls.clientCa.enabled }}
- --tls-client-ca=/etc/trivec/client-ca/{{ .Values.tls.clientCa.key }}
{{- end }}
{{- else }}
- --allow-insecure
{{- end }}
{{- if .Values.access.enabled }}
- --access-file=/etc/trivec/access/{{ .Values.access.key }}
{{- end }}
- --management={{ ternary "auto" "off" .Values.management.enabled }}
{{- if and .Values.management.enabled .Values.management.port }}
- --management-host=127.0.0.1
- --management-port={{ .Values.management.port }}
{{- end }}
{{- with .Values.cache.config }}
- {{ print "--cache-config=" . | quote }}
{{- end }}
{{- range $name, $value := .Values.server.options }}
{{- if kindIs "bool" $value }}
- --{{ if not $value }}no-{{ end }}{{ $name }}
{{- else if kindIs "string" $value }}
- {{ printf "--%s=%s" $name $value | quote }}
{{- else }}
- --{{ $name }}={{ toJson $value }}
{{- end }}
{{- end }}
{{- range .Values.server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* The server's own mounts. */}}
{{- define "trivec.serveMounts" -}}
{{- if include "trivec.pinned" . -}}
# Empty, so that the mounts below have a place.
- name: repository
  mountPath: /models
{{- range .Values.models }}
- name: models
  mountPath: /models/{{ .name }}/{{ .version }}
  subPath: {{ .name }}/{{ .version }}
  readOnly: true
{{- if not .config }}
- name: models
  mountPath: /models/{{ .name }}/config.pbtxt
  subPath: {{ .name }}/config.pbtxt
  readOnly: true
{{- end }}
{{- end }}
{{- else -}}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- range .Values.models }}
{{- if .config }}
- name: config
  mountPath: /models/{{ .name }}/config.pbtxt
  subPath: {{ .name }}.pbtxt
  readOnly: true
{{- end }}
{{- end }}
- name: tmp
  mountPath: /tmp
{{- /* Whole directories: a file mounted by subPath would never change. */}}
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/trivec/tls
  readOnly: true
{{- if .Values.tls.clientCa.enabled }}
- name: client-ca
  mountPath: /etc/trivec/client-ca
  readOnly: true
{{- end }}
{{- end }}
{{- if .Values.access.enabled }}
- name: access
  mountPath: /etc/trivec/access
  readOnly: true
{{- end }}
{{- end }}

{{- define "trivec.volumes" -}}
- name: models
{{- if eq .Values.storage.kind "claim" }}
  persistentVolumeClaim:
    claimName: {{ default (print (include "trivec.fullname" .) "-models") .Values.storage.claim.existingName }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .Values.storage.emptyDir.sizeLimit }}
{{- end }}
{{- if include "trivec.pinned" . }}
- name: repository
  emptyDir:
    sizeLimit: 1Mi
{{- end }}
# No volume for /dev/shm: engines in processes of their own share memory by memfd, which counts as the container's.
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSizeLimit }}
{{- if include "trivec.configured" . }}
- name: config
  configMap:
    name: {{ include "trivec.fullname" . }}-config
{{- end }}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secretName }}
    defaultMode: 0440
{{- if .Values.tls.clientCa.enabled }}
- name: client-ca
  secret:
    secretName: {{ default .Values.tls.secretName .Values.tls.clientCa.secretName }}
    # The authorities alone: the private key may lie beside them.
    items:
      - key: {{ .Values.tls.clientCa.key }}
        path: {{ .Values.tls.clientCa.key }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- if .Values.access.enabled }}
- name: access
  secret:
    secretName: {{ .Values.access.secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}
