-- Health of an LlmDeployment for Argo CD: the value of `resource.customizations.health.escadre.dev_LlmDeployment` in
-- the ConfigMap argocd-cm. The rules are those of kstatus: an old generation is in progress, Stalled is degraded,
-- Ready is healthy (also while it grows: what was asked for first is served), everything else is in progress; and, as
-- for a Deployment, what somebody paused is suspended.

local health = { status = "Progressing", message = "the operator has not seen this generation yet" }

local status = obj.status
if status == nil or status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  if condition.observedGeneration == obj.metadata.generation then
    conditions[condition.type] = condition
  end
end

local function holds(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end

local function words(name)
  local condition = conditions[name]
  if condition == nil then
    return ""
  end
  return condition.reason .. ": " .. condition.message
end

if obj.spec ~= nil and obj.spec.suspend == true then
  health.status = "Suspended"
  health.message = words("Ready")
elseif holds("Stalled") then
  health.status = "Degraded"
  health.message = words("Stalled")
elseif conditions["Progressing"] ~= nil and conditions["Progressing"].reason == "Paused" then
  health.status = "Suspended"
  health.message = words("Progressing")
elseif holds("Ready") then
  health.status = "Healthy"
  health.message = words("Ready")
elseif conditions["Ready"] ~= nil then
  health.message = words("Ready")
end

return health
