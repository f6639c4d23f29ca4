{{/* The controller proves to be of this namespace, and is called by its name. */}}
{{- define "naru.namespace" -}}
{{- if ne .Release.Namespace "naru-system" -}}
{{- fail (print "install this chart in the namespace naru-system: "
  "helm install naru … --namespace naru-system --create-namespace") -}}
{{- end -}}
naru-system
{{- end }}

{{- define "naru.selector" -}}
app.kubernetes.io/name: naru
app.kubernetes.io/component: controller
{{- end }}

{{- define "naru.cniSelector" -}}
app.kubernetes.io/name: naru
app.kubernetes.io/component: cni
{{- end }}

{{- define "naru.labels" -}}
{{ include "naru.selector" . }}
{{ include "naru.commonLabels" . }}
{{- end }}

{{- define "naru.cniLabels" -}}
{{ include "naru.cniSelector" . }}
{{ include "naru.commonLabels" . }}
{{- end }}

{{- define "naru.uninstallLabels" -}}
app.kubernetes.io/name: naru
app.kubernetes.io/component: uninstall
{{ include "naru.commonLabels" . }}
{{- end }}

{{- define "naru.commonLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "naru.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Of this chart, and of the chart that it is a part of: names, or objects with one. */}}
{{- define "naru.imagePullSecrets" -}}
{{- $names := list -}}
{{- $global := .Values.global | default dict -}}
{{- range concat .Values.imagePullSecrets (dig "imagePullSecrets" list $global) -}}
{{- $name := kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "name") -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- with uniq $names -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end -}}
{{- end }}

{{- define "naru.controllerAddress" -}}
naru-controller.{{ include "naru.namespace" . }}.svc
{{- with .Values.clusterDomain }}.{{ . }}{{ end }}:15010
{{- end }}

{{- define "naru.nativeSidecars" -}}
{{- if eq (toString .Values.proxy.nativeSidecars) "auto" -}}
{{ semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version }}
{{- else -}}
{{ .Values.proxy.nativeSidecars }}
{{- end -}}
{{- end }}
