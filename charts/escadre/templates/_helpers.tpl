{{/* Name of every object of the operator. */}}
{{- define "escadre.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- printf "%s-operator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-escadre-operator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pod; they never change. */}}
{{- define "escadre.selector" -}}
app.kubernetes.io/name: escadre-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "escadre.labels" -}}
{{ include "escadre.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* An image reference: the tag, or the chart's appVersion. Called with a list of the root and the image. */}}
{{- define "escadre.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{/* Name of the admission policy: cluster-wide, so the namespace is part of it. */}}
{{- define "escadre.policyName" -}}
{{- printf "%s-%s" .Release.Namespace (include "escadre.name" .) -}}
{{- end -}}
