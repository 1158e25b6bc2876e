{{- /*
Three questions, three answers:

- startup: is the first loading over, and does every model serve? Until then the other two are not asked, so a load may
  take minutes. A model that cannot be loaded keeps new pods from replacing those that still serve it
  (server.options.strict-readiness=false: does not). Past probes.startupTimeoutSeconds the container is started anew.
- readiness: does the gRPC port serve a model now? No while the server drains, or while every engine is being built anew.
  A no takes the pod out of the Services and never restarts it.
- liveness: does the process still answer? Not whether models serve or how busy it is: a restart would mend neither.

The kubelet's gRPC probe speaks no TLS: with it the metrics port is asked for readiness, too. And `explicit` with nothing to
load serves no model yet, but is ready for the calls that load some.
*/}}
{{- define "trivec.probes" -}}
{{- $waits := and (eq .Values.server.modelControlMode "explicit") (not .Values.server.loadModels) (not .Values.probes.readinessService) -}}
startupProbe:
  httpGet:
    path: /v2/health/ready
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ ceil (divf .Values.probes.startupTimeoutSeconds 5) | int }}
readinessProbe:
  {{- if or .Values.tls.enabled $waits }}
  httpGet:
    path: /v2/health/ready
    port: metrics
  {{- else }}
  grpc:
    port: 8001
    {{- with .Values.probes.readinessService }}
    service: {{ . | quote }}
    {{- end }}
  {{- end }}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}
