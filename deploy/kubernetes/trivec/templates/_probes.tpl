{{- /*
Three questions, three answers:

- startup: does a model serve yet? Until then the other two are not asked, so a load may take minutes. Past
  probes.startupTimeoutSeconds the container is started anew.
- readiness: does probes.readinessService serve now? No while the server drains, or while its engines are all being built
  anew. A no takes the pod out of the Services and never restarts it.
- liveness: does the process still answer? Not whether models serve or how busy it is: a restart would mend neither, and
  a pod that drains must end in peace.

HTTP asks more strictly for the first two: the first loading must be over and *every* model serve, so that a model which
cannot be loaded keeps new pods from replacing those that still serve it (server.options.strict-readiness=false: does not).
gRPC is content with one. It asks by the port that callers use: one that does not answer them fails the probe, but at
--max-connections the kubelet is refused with the others.
*/}}
{{- define "trivec.probes" -}}
{{- $grpc := eq (include "trivec.probeProtocol" .) "grpc" -}}
startupProbe:
  {{- if $grpc }}
  grpc:
    port: 8001
    service: ""
  {{- else }}
  httpGet:
    path: /v2/health/ready
    port: metrics
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ ceil (divf .Values.probes.startupTimeoutSeconds 5) | int }}
readinessProbe:
  {{- if $grpc }}
  grpc:
    port: 8001
    service: {{ .Values.probes.readinessService | quote }}
  {{- else }}
  httpGet:
    path: /v2/health/ready
    port: metrics
  {{- end }}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  {{- if $grpc }}
  grpc:
    port: 8001
    service: live
  {{- else }}
  httpGet:
    path: /v2/health/live
    port: metrics
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  {{- /* Over HTTP the server itself gives its event loop a minute. */}}
  failureThreshold: {{ ternary 6 3 $grpc }}
{{- end }}

{{- define "trivec.probeProtocol" -}}
{{- if ne .Values.probes.protocol "auto" -}}
{{ .Values.probes.protocol }}
{{- else -}}
{{ ternary "http" "grpc" (or .Values.tls.enabled (eq (include "trivec.startsEmpty" .) "true")) }}
{{- end }}
{{- end }}

{{- /* Whether a pod may rightly serve nothing after its start. */}}
{{- define "trivec.startsEmpty" -}}
{{- $server := .Values.server -}}
{{- if eq $server.modelControlMode "explicit" -}}
{{ empty $server.loadModels }}
{{- else -}}
{{ and (eq $server.modelControlMode "poll") (empty .Values.models) (not .Values.bucket.enabled) }}
{{- end }}
{{- end }}

{{- define "trivec.checkProbes" -}}
{{- $probes := .Values.probes }}
{{- if and .Values.tls.enabled (eq $probes.protocol "grpc") }}
{{- fail "probes.protocol: the kubelet's gRPC probe speaks no TLS; with tls.enabled set http or auto" }}
{{- end }}
{{- if and (eq $probes.protocol "grpc") (eq .Values.server.modelControlMode "explicit") (not .Values.server.loadModels) }}
{{- fail "probes.protocol: over gRPC a pod has started when a model serves, and none is loaded at the start: set server.loadModels, or http or auto" }}
{{- end }}
{{- if and (eq (include "trivec.probeProtocol" .) "http") (ne $probes.readinessService "trivec.v1.EmbeddingService") }}
{{- fail (printf "probes.readinessService: %q can be asked about over gRPC alone, and these probes are HTTP (probes.protocol says when); leave it out" $probes.readinessService) }}
{{- end }}
{{- end }}
