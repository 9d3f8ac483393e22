{{/* Whether pipelines are installed. */}}
{{- define "clipmill.hasPipelines" -}}
{{- if .Values.pipelines.enabled -}}
{{- include "clipmill.has" (dict "root" . "api" "pipelines.kubeflow.org/v2beta1/PipelineVersion") -}}
{{- end -}}
{{- end -}}

{{/* Namespaces of jobs, endpoints and pipelines' tasks, which all read the store: a list as YAML. */}}
{{- define "clipmill.taskNamespaces" -}}
{{- $namespaces := list .Release.Namespace -}}
{{- if include "clipmill.hasPipelines" . -}}
{{- $namespaces = append $namespaces .Values.pipelines.kubeflow.namespace -}}
{{- end -}}
{{- $namespaces | uniq | toYaml -}}
{{- end -}}

{{/* Service account of the pipelines' tasks. */}}
{{- define "clipmill.taskServiceAccount" -}}
{{- $kubeflow := .Values.pipelines.kubeflow -}}
{{- $kubeflow.serviceAccount | default (ternary "default-editor" "pipeline-runner" $kubeflow.multiUser) -}}
{{- end -}}

{{/* Default values of the pipelines' parameters, as YAML. */}}
{{- define "clipmill.pipelineDefaults" -}}
{{- $defaults := dict "store" .Values.objectStore.uri "namespace" .Release.Namespace "runtime" "cpu" -}}
{{- if .Values.autoscaling.enabled -}}{{- $_ := set $defaults "prometheus" .Values.autoscaling.prometheus -}}{{- end -}}
{{- if .Values.kueue.enabled -}}{{- $_ := set $defaults "queue" .Values.kueue.queue -}}{{- end -}}
{{- mergeOverwrite $defaults (deepCopy .Values.pipelines.defaults) | toYaml -}}
{{- end -}}

{{/* Refuse a Kubeflow Pipelines that can't show or run the pipelines, as far as the cluster tells. */}}
{{- define "clipmill.checkKubeflow" -}}
{{- $kubeflow := .Values.pipelines.kubeflow -}}
{{- $space := $kubeflow.namespace -}}
{{- /* Without a cluster, lookup finds nothing. */ -}}
{{- if lookup "v1" "Namespace" "" "default" -}}
{{- $server := lookup "apps/v1" "Deployment" $space "ml-pipeline" -}}
{{- if not (lookup "v1" "Namespace" "" $space) -}}
{{- fail (printf "pipelines.kubeflow.namespace is %q, which doesn't exist: set it to the namespace of Kubeflow Pipelines, or pipelines.enabled to false" $space) -}}
{{- end -}}
{{- if and $kubeflow.multiUser $server -}}
{{- fail (printf "pipelines.kubeflow.multiUser is true, but namespace %q is that of Kubeflow Pipelines' API server, where no user's tasks run: set pipelines.kubeflow.namespace to a profile's" $space) -}}
{{- end -}}
{{- if and (not $kubeflow.multiUser) (not $server) -}}
{{- fail (printf "namespace %q has no Deployment ml-pipeline: set pipelines.kubeflow.namespace to that of Kubeflow Pipelines, with multiUser: true to that of a profile, or pipelines.enabled to false" $space) -}}
{{- end -}}
{{- if $server -}}
{{- $containers := $server.spec.template.spec.containers | toJson -}}
{{- if not (regexMatch "pipelinesStoreKubernetes(=true)?\"" $containers) -}}
{{- fail (printf "Kubeflow Pipelines in namespace %q keeps its pipelines in a database: run its API server with --pipelinesStoreKubernetes=true, or set pipelines.enabled to false" $space) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The pipeline tasks' platform, with the pools' own nodes in the place of the compiled names, and the
pipeline's spec with the pools' share, the installed images, and the installation's defaults:
dict "root" $ "file" F.
*/}}
{{- define "clipmill.pipeline" -}}
{{- $root := .root -}}
{{- $documents := splitList "\n---\n" ($root.Files.Get .file) -}}
{{- $spec := index $documents 0 | fromYaml -}}
{{- $platform := index $documents 1 | fromYaml -}}
{{- $executors := $spec.deploymentSpec.executors -}}
{{- range $name, $placed := $platform.platforms.kubernetes.deploymentSpec.executors -}}
{{- $label := index $placed.nodeSelector.labels "clipmill.io/pool" -}}
{{- $what := printf "pipeline %s" $spec.pipelineInfo.name -}}
{{- /* A cluster without GPUs runs every task on the pool it has. */ -}}
{{- $chosen := $label -}}
{{- if not (hasKey $root.Values.pools $label) -}}{{- $chosen = ternary "cpu" "gpu" (eq $label "gpu") -}}{{- end -}}
{{- $pool := include "clipmill.pool" (dict "root" $root "name" $chosen "what" $what) | fromYaml -}}
{{- if $pool.nodeSelector -}}
{{- $_ := set $placed "nodeSelector" (dict "labels" $pool.nodeSelector) -}}
{{- else -}}
{{- $_ := unset $placed "nodeSelector" -}}
{{- end -}}
{{- $_ := set $placed "tolerations" ($pool.tolerations | default list) -}}
{{- range $placed.emptyDirMounts -}}
{{- $_ := set . "sizeLimit" (printf "%vGi" ($pool.sharedMemoryGibibytes | default 2)) -}}
{{- end -}}
{{- $container := (index $executors $name).container -}}
{{- $_ := set $container "image" (include "clipmill.image" (dict "root" $root "image" $root.Values.images.train)) -}}
{{- /* A light task, which requests less than its limit, keeps its own share. */ -}}
{{- $own := $container.resources -}}
{{- if eq $own.resourceCpuRequest $own.resourceCpuLimit -}}
{{- $cpu := toString $pool.cpu -}}
{{- $memory := printf "%vGi" $pool.memoryGibibytes -}}
{{- $resources := dict "resourceCpuRequest" $cpu "resourceCpuLimit" $cpu "resourceMemoryRequest" $memory "resourceMemoryLimit" $memory -}}
{{- with $pool.gpus -}}
{{- $type := default "nvidia.com/gpu" $pool.gpuResource -}}
{{- $_ := set $resources "accelerator" (dict "resourceType" $type "resourceCount" (toString .)) -}}
{{- end -}}
{{- $_ := set $container "resources" $resources -}}
{{- end -}}
{{- end -}}
{{- $parameters := dig "root" "inputDefinitions" "parameters" dict $spec -}}
{{- range $name, $value := include "clipmill.pipelineDefaults" $root | fromYaml -}}
{{- with get $parameters $name -}}
{{- $_ := set . "defaultValue" $value -}}
{{- $_ := set . "isOptional" true -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "pipelineSpec" $spec "platformSpec" $platform) -}}
{{- end -}}
