{{- /* The containers that fill the repository before the server starts. */}}
{{- define "trivec.initContainers" -}}
{{- if .Values.bucket.enabled }}
- name: copy-bucket
  image: {{ .Values.bucket.image }}
  # Files come under another name and are renamed when they are whole, so pods that copy at once do each other no harm.
  args: [copy, --config=/tmp/rclone.conf, --cache-dir=/tmp/rclone, {{ .Values.bucket.source | quote }}, /models]
  {{- with .Values.bucket.secretName }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  resources: {{- toYaml .Values.bucket.resources | nindent 4 }}
  securityContext: {{- include "trivec.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- range .Values.models }}
- name: {{ include "trivec.pullName" .name }}
  image: {{ include "trivec.image" $ }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  # A version is moved into place when it is complete, its manifest with it: who finds that needs no hub, so that pods
  # start also while the hub does not answer. `trivec pull` waits for another pod that pulls the same model.
  command: [/bin/sh, -euc]
  args:
    - |
      if [ -e "$1/manifest.json" ]; then echo "$1 is there already"; exit 0; fi
      shift
      exec trivec pull "$@"
    - sh
    - /models/{{ .name }}/{{ .version }}
    - --model-repository=/models
    - --name={{ .name }}
    - --model-version={{ .version }}
    {{- with .revision }}
    - --revision={{ . }}
    {{- end }}
    {{- with .precision }}
    - --precision={{ . }}
    {{- end }}
    - {{ .source }}
  env:
    # Beside the models, so that a pull that is cut off goes on where it was.
    - name: HF_HOME
      value: /models/.huggingface
    {{- with $.Values.pull.endpoint }}
    - name: HF_ENDPOINT
      value: {{ . | quote }}
    {{- end }}
    {{- with $.Values.pull.tokenSecret }}
    {{- if .name }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ .name }}
          key: {{ .key }}
    {{- end }}
    {{- end }}
  resources: {{- toYaml $.Values.pull.resources | nindent 4 }}
  securityContext: {{- include "trivec.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
