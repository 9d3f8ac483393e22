{{/* Whether an API is there: dict "root" $ "api" "group/version/Kind". */}}
{{- define "clipmill.has" -}}
{{- if or (eq .root.Values.crds "require") (.root.Capabilities.APIVersions.Has .api) -}}yes{{- end -}}
{{- end -}}

{{/*
Values that contradict each other or the cluster: an end with all of them. A wrong type or spelling is
the schema's to refuse.
*/}}
{{- define "clipmill.validate" -}}
{{- include "clipmill.refuseRenamed" . -}}
{{- $values := .Values -}}
{{- $wrong := list -}}
{{- if $values.nameOverride -}}
{{- $wrong = append $wrong "nameOverride was removed in 0.2: pods of jobs and endpoints are found by the name clipmill" -}}
{{- end -}}
{{- if $values.global -}}
{{- $wrong = append $wrong "global isn't read by this chart: set its values under their own names" -}}
{{- end -}}
{{- if not (regexMatch "^([^/:\\s]+(:[0-9]+)?(/[^/:\\s]+)*)?$" $values.images.registry) -}}
{{- $wrong = append $wrong (printf "images.registry is %q: write HOST, HOST:PORT or HOST/PATH, without a scheme, a space or a slash at the end" $values.images.registry) -}}
{{- end -}}
{{- range $name, $pool := $values.pools -}}
{{- if $pool -}}
{{- $fabric := $pool.fabric | default "none" -}}
{{- if and (hasPrefix "gpu" $name) (not $pool.gpus) -}}
{{- $wrong = append $wrong (printf "pools.%s has no GPU: set pools.%s.gpus to 1 or more, or call the pool something else" $name $name) -}}
{{- end -}}
{{- if and (ne $fabric "none") (not $pool.fabricDevices) -}}
{{- $wrong = append $wrong (printf "pools.%s.fabric is %s, but fabricDevices is 0: set it to the devices of a node" $name $fabric) -}}
{{- else if and (eq $fabric "none") $pool.fabricDevices -}}
{{- $wrong = append $wrong (printf "pools.%s.fabricDevices is %v, but fabric is none: set fabric to efa or infiniband" $name $pool.fabricDevices) -}}
{{- end -}}
{{- if ge (float64 ($pool.sharedMemoryGibibytes | default 2)) (float64 $pool.memoryGibibytes) -}}
{{- $wrong = append $wrong (printf "pools.%s.sharedMemoryGibibytes is %v of a pod's %v GiB, of which it is a part: set less" $name ($pool.sharedMemoryGibibytes | default 2) $pool.memoryGibibytes) -}}
{{- end -}}
{{- range $pool.tolerations -}}
{{- if and (not .key) (ne (.operator | default "Equal") "Exists") -}}
{{- $wrong = append $wrong (printf "a toleration of pools.%s compares with Equal, but has no key: set key, or operator: Exists" $name) -}}
{{- else if and .value (eq (.operator | default "Equal") "Exists") -}}
{{- $wrong = append $wrong (printf "a toleration of pools.%s has operator Exists and a value: leave value out, or set operator: Equal" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $path, $resources := dict
    "serving.resources.cpu" $values.serving.resources.cpu "serving.resources.gpu" $values.serving.resources.gpu
    "demo.resources" $values.demo.resources "objectStore.embedded.resources" $values.objectStore.embedded.resources -}}
{{- if $resources -}}
{{- range $name, $amount := $resources.requests -}}
{{- $limit := get $resources.limits $name -}}
{{- if and $limit (gt (include "clipmill.number" $amount | float64) (include "clipmill.number" $limit | float64)) -}}
{{- $wrong = append $wrong (printf "%s.requests.%s is %v, above limits.%s %v: lower the request or raise the limit" $path $name $amount $name $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $values.serving.endpoints -}}
{{- if has .name $names -}}
{{- $wrong = append $wrong (printf "serving.endpoints names %q twice: an endpoint's name is unique" .name) -}}
{{- end -}}
{{- if or (eq .name "demo") (hasPrefix "clipmill-" .name) -}}
{{- $wrong = append $wrong (printf "serving.endpoints has the name %q, which is the chart's own: choose another" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $runtime := .runtime | default "cpu" -}}
{{- if and (eq $runtime "gpu") (not (hasKey $values.pools "gpu")) -}}
{{- $wrong = append $wrong (printf "endpoint %q wants a GPU, but pools has no pool gpu" .name) -}}
{{- else if not (get $values.serving.resources $runtime) -}}
{{- $wrong = append $wrong (printf "endpoint %q runs on the %s, but serving.resources.%s is null: set it, or another runtime" .name $runtime $runtime) -}}
{{- end -}}
{{- end -}}
{{- if and $values.serving.endpoints (not $values.serving.enabled) -}}
{{- $wrong = append $wrong "serving.endpoints isn't empty, but serving.enabled is false: set it to true, or leave the endpoints out" -}}
{{- end -}}
{{- $route := $values.demo.route -}}
{{- if and (or $route.host $route.gatewayNamespace) (not $route.gateway) -}}
{{- $wrong = append $wrong "demo.route has a host or gatewayNamespace, but no gateway: set demo.route.gateway to the Gateway's name" -}}
{{- end -}}
{{- $store := $values.objectStore -}}
{{- if and $store.embedded.enabled $store.endpoint (not (regexMatch "^http://clipmill-store[.:/]" $store.endpoint)) -}}
{{- $wrong = append $wrong (printf "objectStore.embedded is on, but objectStore.endpoint is %s, so nobody would use it: leave endpoint empty, or set embedded.enabled to false" $store.endpoint) -}}
{{- end -}}
{{- if and (or $store.accessKey $store.secretKey) (not (or $store.createSecret $store.useWorkloadIdentity)) -}}
{{- $wrong = append $wrong "objectStore.accessKey or secretKey is set, but createSecret is false, so they would be ignored: set createSecret to true, or leave the keys out" -}}
{{- end -}}
{{- if $values.kueue.enabled -}}
{{- if not $values.kueue.nodeQuota -}}
{{- $wrong = append $wrong "kueue.enabled is true, but kueue.nodeQuota has no pool: set the nodes of at least one" -}}
{{- end -}}
{{- $unlabeled := list -}}
{{- range $name, $_ := $values.kueue.nodeQuota -}}
{{- $pool := index $values.pools $name | default dict -}}
{{- if and $pool (not $pool.nodeSelector) }}{{ $unlabeled = append $unlabeled $name }}{{ end -}}
{{- end -}}
{{- if gt (len $unlabeled) 1 -}}
{{- $wrong = append $wrong (printf "kueue.nodeQuota has the pools %s without a nodeSelector, by which Kueue tells them apart: set pools.NAME.nodeSelector of all but one" (join " and " $unlabeled)) -}}
{{- end -}}
{{- if and (has "kubernetes.io/hostname" $values.kueue.topologyLevels) (ne (last $values.kueue.topologyLevels) "kubernetes.io/hostname") -}}
{{- $wrong = append $wrong "kueue.topologyLevels has kubernetes.io/hostname, which is a single node, before a wider level: put it last" -}}
{{- end -}}
{{- end -}}
{{- if and $values.autoscaling.enabled (not $values.monitoring.enabled) -}}
{{- $wrong = append $wrong "autoscaling.enabled is true, but monitoring.enabled is false, so no Prometheus has the figures to scale by: set it to true" -}}
{{- end -}}
{{- if and $values.autoscaling.enabled $values.autoscaling.http.enabled -}}
{{- $wrong = append $wrong "autoscaling.enabled and autoscaling.http.enabled are both true, but an endpoint has one autoscaler: set enabled to false to scale to zero by requests, or http.enabled to false to scale by Prometheus' figures" -}}
{{- end -}}
{{- with $wrong -}}{{- fail (join "; " .) -}}{{- end -}}
{{- end -}}

{{/* Values that have another name since 0.2: an end with the new names. */}}
{{- define "clipmill.refuseRenamed" -}}
{{- $renamed := list
  (list "objectStore.role" "objectStore.useWorkloadIdentity")
  (list "serviceAccounts.operator" "serviceAccounts.submitter")
  (list "training.gang" "training.gangScheduler")
  (list "playground" "demo")
  (list "kueue.nodes" "kueue.nodeQuota")
  (list "networkPolicies.allowedNamespaces" "networkPolicies.gatewayNamespaces, prometheusNamespaces or userNamespaces") -}}
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
app.kubernetes.io/name: clipmill
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

{{/* A pool's node share: each resource that a pod requests, and its amount. */}}
{{- define "clipmill.poolAmounts" -}}
{{- $amounts := dict "cpu" (toString .cpu) "memory" (printf "%vGi" .memoryGibibytes) -}}
{{- with .gpus }}{{ $_ := set $amounts (default "nvidia.com/gpu" $.gpuResource) (toString .) }}{{ end -}}
{{- $fabric := default "none" .fabric -}}
{{- if and (ne $fabric "none") .fabricDevices -}}
{{- $_ := set $amounts (ternary "vpc.amazonaws.com/efa" "rdma/hca" (eq $fabric "efa")) (toString .fabricDevices) -}}
{{- end -}}
{{- toYaml $amounts -}}
{{- end -}}

{{/* Requests and limits of a pool's node share. */}}
{{- define "clipmill.poolResources" -}}
{{- $amounts := include "clipmill.poolAmounts" . -}}
requests: {{- $amounts | nindent 2 }}
limits: {{- $amounts | nindent 2 }}
{{- end -}}

{{/* Changes with the store's keys, so that pods that read them at their start are restarted. */}}
{{- define "clipmill.storeChecksum" -}}
{{- $store := .Values.objectStore -}}
{{- list $store.accessKey $store.secretKey $store.endpoint $store.region $store.embedded.keysVersion | toJson | sha256sum -}}
{{- end -}}

{{/* Number of a quantity such as 250m or 2Gi. */}}
{{- define "clipmill.number" -}}
{{- $text := toString . -}}
{{- $units := dict "m" 0.001 "K" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | default 1.0) -}}
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
  (list .Values.autoscaling.http.enabled "autoscaling.http" "http.keda.sh/v1alpha1/HTTPScaledObject")
  (list (and .Values.demo.enabled .Values.demo.route.gateway) "demo.route" "gateway.networking.k8s.io/v1/HTTPRoute")
  (list .Values.dataPlane.enabled "dataPlane" "argoproj.io/v1alpha1/Workflow") -}}
{{- range $parts -}}
{{- if and (index . 0) (not (include "clipmill.has" (dict "root" $ "api" (index . 2)))) -}}
{{- $missing = append $missing (printf "%s (needs %s)" (index . 1) (index . 2)) -}}
{{- end -}}
{{- end -}}
{{- join ", " $missing -}}
{{- end -}}
