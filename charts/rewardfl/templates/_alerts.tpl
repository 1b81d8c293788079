{{/*
The alerts. docs/installation.md says what to do about each. rewardfl_jobs carries the namespace of the jobs, everything else that
of the operator; a replica that stands by knows the same jobs as the one that works, hence max.
*/}}
{{- define "rewardfl.alerts" -}}
{{- $operator := printf "namespace=%q" .Release.Namespace -}}
- alert: RewardFLOperatorDown
  expr: absent(rewardfl_build_info{ {{- $operator -}} })
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: No RewardFL operator is scraped in {{ .Release.Namespace }}.
    description: Jobs that run go on, but nothing starts, no status changes and no gang is restarted. See the Deployment {{ include "rewardfl.operator" . }}.
{{- if .Values.leaderElection.enabled }}
- alert: RewardFLOperatorNoLeader
  expr: sum(rewardfl_leader{ {{- $operator -}} }) == 0
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No replica of the RewardFL operator in {{ .Release.Namespace }} works.
    description: They all stand by. See the Lease {{ include "rewardfl.operator" . }} and the replicas' logs.
{{- end }}
- alert: RewardFLReconcileErrors
  expr: >-
    sum by (cause) (rate(rewardfl_reconcile_errors_total{ {{- $operator -}} }[10m]))
    / on () group_left () sum(rate(rewardfl_reconcile_duration_seconds_count{ {{- $operator -}} }[10m])) > 0.1
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: More than a tenth of the RewardFL operator's turns fail ({{ `{{ $labels.cause }}` }}).
    description: The operator's log names the jobs and what the API server answered.
- alert: RewardFLWatchDead
  expr: max by (kind) (max_over_time(rewardfl_watch_age_seconds{ {{- $operator -}} }[10m])) > 150
  labels: {severity: warning}
  annotations:
    summary: The RewardFL operator's watch of {{ `{{ $labels.kind }}` }} has been silent for {{ `{{ $value | humanizeDuration }}` }}.
    description: Statuses are late. The liveness probe starts the operator anew; when that happens again and again, something on the way to the API server cuts watches.
- alert: RewardFLQueueGrowing
  expr: min_over_time(rewardfl_queue_depth{ {{- $operator -}} }[15m]) > 100
  labels: {severity: warning}
  annotations:
    summary: More than 100 jobs have waited for the RewardFL operator for a quarter of an hour.
    description: It does not keep up. See its CPU limit, operator.workers, and the API server's answers (rewardfl_api_requests_total).
- alert: RewardFLApiRetries
  expr: sum by (reason) (rate(rewardfl_api_retries_total{ {{- $operator -}} }[10m])) > 1
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: The RewardFL operator repeats more than one request a second ({{ `{{ $labels.reason }}` }}).
    description: The API server is overloaded or refuses. See its priority and fairness settings.
- alert: RewardFLJobsFailing
  # More than at any time 10 to 20 minutes ago. None is known from then: none had failed, if there was an operator to say so.
  expr: >-
    max by (namespace) (rewardfl_jobs{phase="Failed"})
    - (max by (namespace) (max_over_time(rewardfl_jobs{phase="Failed"}[10m] offset 10m))
    or 0 * max by (namespace) (rewardfl_jobs{phase="Failed"}) and on () sum(rewardfl_build_info{ {{- $operator -}} } offset 10m)) > 0
  labels: {severity: warning}
  annotations:
    summary: {{ `'{{ $value }} RewardFLJobs have failed in {{ $labels.namespace }} within the last minutes.'` }}
    description: {{ `'kubectl -n {{ $labels.namespace }} get rewardfljobs; the condition of a job says why it failed and what to do.'` }}
- alert: RewardFLJobsPending
  expr: max by (namespace) (rewardfl_jobs{phase="Pending"}) > 0
  for: 2h
  labels: {severity: info}
  annotations:
    summary: {{ `'For two hours there has been a RewardFLJob in {{ $labels.namespace }} that waits for its pods.'` }}
    description: {{ `'kubectl -n {{ $labels.namespace }} describe rewardfljob; the Running condition carries the message of the scheduler.'` }}
{{- end -}}
