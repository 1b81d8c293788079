{{/* The chart's name in object names. */}}
{{- define "rewardfl.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Release and chart name, without saying the same twice. */}}
{{- define "rewardfl.fullname" -}}
{{- $name := include "rewardfl.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of the operator's objects. Cluster-wide ones carry the namespace as well: two releases must not share them. */}}
{{- define "rewardfl.operator" -}}{{ include "rewardfl.fullname" . }}-operator{{- end -}}
{{- define "rewardfl.clusterwide" -}}{{ printf "%s:%s" .Release.Namespace (include "rewardfl.operator" .) }}{{- end -}}

{{- define "rewardfl.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rewardfl.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What the Deployment finds its pods by; never changes between versions. */}}
{{- define "rewardfl.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rewardfl.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "rewardfl.standardLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "rewardfl.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rewardfl
{{- end -}}

{{/* Labels of every object. commonLabels add to the standard ones; they cannot replace those that objects are found by. */}}
{{- define "rewardfl.labels" -}}
{{- toYaml (merge (include "rewardfl.standardLabels" . | fromYaml) .Values.commonLabels) -}}
{{- end -}}

{{/* What the pod of `helm test` is found by; the Service and the Deployment must not take it for an operator. */}}
{{- define "rewardfl.testLabels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" "test") (include "rewardfl.selectorLabels" . | fromYaml)) -}}
{{- end -}}

{{/* The same for the pod that runs before the chart is uninstalled. */}}
{{- define "rewardfl.releaseLabels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" "release") (include "rewardfl.labels" . | fromYaml)) -}}
{{- end -}}

{{/* What every pod of the chart is given: who it may be, and where it may run. */}}
{{- define "rewardfl.podSettings" -}}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "rewardfl.annotations" -}}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image reference from {registry, repository, tag, digest}. */}}
{{- define "rewardfl.image" -}}
{{- $image := .image -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .version $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What the operator may do with the objects of jobs, in all namespaces or in each that it serves. */}}
{{- define "rewardfl.rules" -}}
# RewardFLJobs are read, and their status is written; patch is for those alone whose spec.guard asks to be suspended.
- apiGroups: [rewardfl.io]
  resources: [rewardfljobs]
  verbs: [list, watch, patch]
- apiGroups: [rewardfl.io]
  resources: [rewardfljobs/status]
  verbs: [patch]
# The Indexed Job of each RewardFLJob; deleted when the job is made anew in another shape, or leaves its queue. What runs before
# the chart is uninstalled has these rights as well.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Pods are the Job controller's: they are looked at, evicted when their gang has lost a member, and deleted where
# runPolicy.cleanPodPolicy says so. create is for dry runs alone, which tell why pods are refused; whoever may create Jobs
# may have pods made anyway.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# Configuration and progress of each job. get and patch are also what the jobs' own roles pass on.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
# Why a queued job waits, in Kueue's words.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end -}}
