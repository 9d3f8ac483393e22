{{/* Seconds for which a stopping server is unready and still answers: until every node knows. */}}
{{- define "clipmill.drainSeconds" -}}5{{- end -}}

{{/* Time to stop of a server's pod: unready, the requests in flight, and 10 s to spare. */}}
{{- define "clipmill.servingGraceSeconds" -}}
{{ add (include "clipmill.drainSeconds" .) .Values.serving.graceSeconds 10 }}
{{- end -}}

{{/* How a server stops, as its arguments. */}}
{{- define "clipmill.stopArguments" -}}
- --set=unready_before_shutdown_seconds={{ include "clipmill.drainSeconds" . }}
- --set=shutdown_timeout_seconds={{ .Values.serving.graceSeconds }}
{{- end -}}

{{- define "clipmill.hasKeda" -}}
{{- if and .Values.autoscaling.enabled (include "clipmill.has" (dict "root" . "api" "keda.sh/v1alpha1/ScaledObject")) -}}yes{{- end -}}
{{- end -}}

{{- define "clipmill.hasHttpScaling" -}}
{{- if and .Values.autoscaling.http.enabled (include "clipmill.has" (dict "root" . "api" "http.keda.sh/v1alpha1/HTTPScaledObject")) -}}yes{{- end -}}
{{- end -}}

{{/* Who decides an endpoint's number of pods. Without a class KServe scales by CPU. */}}
{{- define "clipmill.autoscalerClass" -}}
{{- if include "clipmill.hasKeda" . }}keda{{ else if include "clipmill.hasHttpScaling" . }}external{{ else }}none{{ end -}}
{{- end -}}

{{/*
A predictor's settings, whichever model it serves: dict "root" $ "name" NAME. The ServingRuntimes
carry them too, with ENDPOINT for the name: rollouts make new endpoints with them.
*/}}
{{- define "clipmill.predictor" -}}
{{- $root := .root -}}
serviceAccountName: clipmill-serve
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ include "clipmill.servingGraceSeconds" $root }}
securityContext: {{- include "clipmill.podSecurity" $root | nindent 2 }}
{{- if include "clipmill.hasKeda" $root }}
{{- $chosen := printf "namespace=%q,model=%q" $root.Release.Namespace .name }}
{{- $queue := printf "sum(clipmill_serve_queue_depth{%s})" $chosen }}
{{- $requests := printf "sum(rate(clipmill_serve_requests_total{%s}[1m]))" $chosen }}
# KServe makes KEDA's ScaledObject of it; KEDA divides the values by the number of pods.
autoScaling:
  metrics:
    {{- range $metric := list (list $queue $root.Values.autoscaling.targetQueueDepth) (list $requests $root.Values.autoscaling.targetRequestsPerSecond) }}
    - type: External
      external:
        metric:
          backend: prometheus
          serverAddress: {{ $root.Values.autoscaling.prometheus }}
          query: {{ index $metric 0 | quote }}
        target: {type: Value, value: {{ index $metric 1 | toString | quote }}}
    {{- end }}
{{- end }}
{{- end -}}
