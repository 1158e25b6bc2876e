{{- /*
Three questions, three answers:

- startup: is the first loading over, and does every model serve? Until then the other two are not asked, so a load may
  take minutes. A model that cannot be loaded keeps new pods from replacing those that still serve it
  (server.options.strict-readiness=false: does not). Past probes.startupTimeoutSeconds the container is started anew.
- readiness: does every model serve now? No while the server drains, or while the engines of a model are all being built
  anew. A no takes the pod out of the Services and never restarts it.
- liveness: does the process still answer? Not whether models serve or how busy it is: a restart would mend neither.

All are asked on the metrics port: on the gRPC port the kubelet would be one more caller, refused at --max-connections,
and a pod that serves thousands would be taken out and leave its load to the next. Also, the kubelet's gRPC probe speaks no
TLS. probes.readinessService asks for one model there all the same.
*/}}
{{- define "trivec.probes" -}}
startupProbe:
  httpGet:
    path: /v2/health/ready
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ ceil (divf .Values.probes.startupTimeoutSeconds 5) | int }}
readinessProbe:
  {{- with .Values.probes.readinessService }}
  grpc:
    port: 8001
    service: {{ . | quote }}
  {{- else }}
  httpGet:
    path: /v2/health/ready
    port: metrics
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
