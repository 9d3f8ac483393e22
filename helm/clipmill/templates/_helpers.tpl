{{/* Whether an API is there: dict "root" $ "api" "group/version/Kind". */}}
{{- define "clipmill.has" -}}
{{- if or (eq .root.Values.crds "require") (.root.Capabilities.APIVersions.Has .api) -}}yes{{- end -}}
{{- end -}}

{{/* Values that have another name since 0.2: an end with the new names. */}}
{{- define "clipmill.refuseRenamed" -}}
{{- $renamed := list
  (list "objectStore.role" "objectStore.useWorkloadIdentity")
  (list "serviceAccounts.operator" "serviceAccounts.submitter")
  (list "training.gang" "training.gangScheduler")
  (list "playground" "demo")
  (list "kueue.nodes" "kueue.nodeQuota") -}}
{{- $messages := list -}}
{{- range $pair := $renamed -}}
{{- $value := $.Values -}}
{{- range $key := splitList "." (index $pair 0) -}}
{{- if and (kindIs "map" $value) (hasKey $value $key) -}}{{- $value = index $value $key -}}{{- else -}}{{- $value = "absent" -}}{{- end -}}
{{- end -}}
{{- if ne (toString $value) "absent" -}}
{{- $messages = append $messages (printf "%s is called %s since 0.2" (index $pair 0) (index $pair 1)) -}}
{{- end -}}
{{- end -}}
{{- with get (dict "detect" "auto" "assume" "require") .Values.crds -}}
{{- $messages = append $messages (printf "crds: %s is written crds: %s since 0.2" $.Values.crds .) -}}
{{- end -}}
{{- with $messages -}}{{- fail (join "; " .) -}}{{- end -}}
{{- end -}}

{{- define "clipmill.labels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* An image's full name: dict "root" $ "image" .Values.images.train. */}}
{{- define "clipmill.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{- with .root.Values.images.registry }}{{ . }}/{{ end }}{{ .image.repository }}:{{ $tag }}
{{- end -}}

{{- define "clipmill.podSecurity" -}}
runAsNonRoot: true
{{- if not .Values.openshift }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "clipmill.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* How a server says that it is well. */}}
{{- define "clipmill.probes" -}}
startupProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 5
  failureThreshold: 120
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 5
livenessProbe:
  httpGet: {path: /v2/health/live, port: 8080}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{/* The chosen pool, or an end with the names there are: dict "root" $ "name" N "what" W. */}}
{{- define "clipmill.pool" -}}
{{- $pool := index .root.Values.pools .name -}}
{{- if not $pool -}}
{{- fail (printf "%s needs the pool %q, which isn't in pools; there are: %s" .what .name (join ", " (keys .root.Values.pools | sortAlpha))) -}}
{{- end -}}
{{- toYaml $pool -}}
{{- end -}}

{{/* Requests and limits of a pool's node share. */}}
{{- define "clipmill.poolResources" -}}
{{- $amounts := dict "cpu" (toString .cpu) "memory" (printf "%vGi" .memoryGibibytes) -}}
{{- with .gpus }}{{ $_ := set $amounts (default "nvidia.com/gpu" $.gpuResource) (toString .) }}{{ end -}}
{{- $fabric := default "none" .fabric -}}
{{- if and (ne $fabric "none") .fabricDevices -}}
{{- $_ := set $amounts (ternary "vpc.amazonaws.com/efa" "rdma/hca" (eq $fabric "efa")) (toString .fabricDevices) -}}
{{- end -}}
requests: {{- toYaml $amounts | nindent 2 }}
limits: {{- toYaml $amounts | nindent 2 }}
{{- end -}}

{{/* Parts that are on and whose CRDs are missing, for the notes: a comma-separated list. */}}
{{- define "clipmill.missing" -}}
{{- $missing := list -}}
{{- $parts := list
  (list .Values.pipelines.enabled "pipelines" "pipelines.kubeflow.org/v2beta1/PipelineVersion")
  (list .Values.training.enabled "training" "trainer.kubeflow.org/v1alpha1/TrainingRuntime")
  (list (ne .Values.training.gangScheduler "none") (printf "training.gangScheduler: %s" .Values.training.gangScheduler) (include "clipmill.gangApi" .Values.training.gangScheduler))
  (list .Values.serving.enabled "serving" "serving.kserve.io/v1beta1/InferenceService")
  (list .Values.monitoring.enabled "monitoring" "monitoring.coreos.com/v1/PodMonitor")
  (list .Values.kueue.enabled "kueue" "kueue.x-k8s.io/v1beta2/ClusterQueue")
  (list .Values.autoscaling.enabled "autoscaling" "keda.sh/v1alpha1/ScaledObject")
  (list (and .Values.demo.enabled .Values.demo.route.gateway) "demo.route" "gateway.networking.k8s.io/v1/HTTPRoute")
  (list .Values.dataPlane.enabled "dataPlane" "argoproj.io/v1alpha1/Workflow") -}}
{{- range $parts -}}
{{- if and (index . 0) (not (include "clipmill.has" (dict "root" $ "api" (index . 2)))) -}}
{{- $missing = append $missing (printf "%s (needs %s)" (index . 1) (index . 2)) -}}
{{- end -}}
{{- end -}}
{{- join ", " $missing -}}
{{- end -}}
