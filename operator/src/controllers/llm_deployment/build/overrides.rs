//! `spec.podOverrides`: a strategic merge patch over the pod template. Pure.
//!
//! Guarantees: what is in the patch is in the pod that comes out, or the patch is refused with the field's path; what
//! the runtime needs in order to verify what it serves is as it was; nothing gives power over a node or another account.

#[cfg(test)]
mod tests;

use escadre_crds::names;
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use serde_json::{Map, Value, json};

use super::super::revision::json as to_json;

/// Where paths begin.
const ROOT: &str = "spec.podOverrides";
/// Fields of our containers that may be changed: none of them decides what is run or read.
const OPEN: [&str; 5] = ["name", "env", "resources", "securityContext", "volumeMounts"];
/// Folders of our containers in which something may be mounted: nothing that is run or verified lies there.
const MOUNTABLE: [&str; 2] = ["/mnt", "/dev/shm"];
const OUR_CONTAINERS: [&str; 2] = [names::CONTAINER_RUNTIME, names::CONTAINER_FETCH];
const OUR_VOLUMES: [&str; 7] = [
    names::VOLUME_MODELS,
    names::VOLUME_TMP,
    names::VOLUME_OVERLAY,
    names::VOLUME_CA,
    names::VOLUME_API_KEYS,
    names::VOLUME_LIMITS,
    names::VOLUME_TLS,
];

/// Fields of a pod that are refused whatever their value, and what to do instead.
const CLOSED: [(&str, &str); 7] = [
    ("serviceAccountName", "use spec.serviceAccountName"),
    ("serviceAccount", "use spec.serviceAccountName"),
    ("nodeName", "it goes round the scheduler; use spec.placement"),
    ("ephemeralContainers", "they cannot be in a new pod; remove it"),
    ("restartPolicy", "pods are healed by restarts; remove it"),
    ("terminationGracePeriodSeconds", "use spec.drain.timeoutSeconds"),
    ("hostname", "pods of one deployment are alike; remove it"),
];

/// Fields of a pod that may not be true, and why.
const NOT_TRUE: [(&str, &str); 5] = [
    ("hostNetwork", "it gives power over the node; remove it"),
    ("hostPID", "it gives power over the node; remove it"),
    ("hostIPC", "it gives power over the node; remove it"),
    (
        "shareProcessNamespace",
        "another process could change the model in memory; remove it",
    ),
    (
        "automountServiceAccountToken",
        "it gives the pod the account's power; remove it",
    ),
];

/// Lays the patch over the template.
///
/// # Errors
/// The field that is refused or unknown, and what to do.
pub(super) fn apply(template: &PodTemplateSpec, changes: &Value) -> Result<PodTemplateSpec, String> {
    check_top(changes)?;
    check_nulls(changes, ROOT)?;
    check_metadata(&changes["metadata"])?;
    check_spec(&changes["spec"])?;
    let mut merged = to_json(template);
    merge(&mut merged, changes, ROOT)?;
    harden(&mut merged["spec"]);
    let typed: PodTemplateSpec =
        serde_json::from_value(merged).map_err(|error| misfit(&changes["spec"], &error.to_string()))?;
    match lost(changes, &to_json(&typed), ROOT) {
        Some(path) => Err(format!(
            "{path} is not a field of a pod; correct its name, `kubectl explain pod{}` lists those that there are",
            parent_of(&path)
        )),
        None => Ok(typed),
    }
}

fn refuse(path: &str, why: &str) -> String {
    format!("{path} is refused: {why}")
}

/// The part of a path that `kubectl explain` knows, without its last name.
fn parent_of(path: &str) -> String {
    let inside = path.strip_prefix(ROOT).unwrap_or_default();
    let parent = inside.rsplit_once('.').map_or("", |(parent, _)| parent);
    let mut plain = String::new();
    let mut depth = 0;
    for character in parent.chars() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            other if depth == 0 => plain.push(other),
            _ => {}
        }
    }
    plain
}

fn check_top(changes: &Value) -> Result<(), String> {
    let Some(fields) = changes.as_object() else {
        return Err(format!("{ROOT} must be an object with the shape of a pod"));
    };
    for (name, value) in fields {
        let path = format!("{ROOT}.{name}");
        if !["metadata", "spec"].contains(&name.as_str()) {
            return Err(refuse(
                &path,
                "a pod is patched in metadata and spec only; move it there or remove it",
            ));
        }
        if !value.is_object() {
            return Err(format!("{path} must be an object, as in a pod"));
        }
    }
    Ok(())
}

/// A patch adds and changes. What removes could take away what protects.
fn check_nulls(value: &Value, path: &str) -> Result<(), String> {
    match value {
        Value::Null => Err(refuse(
            path,
            "null would remove a field, and a patch can only add and change; leave it out",
        )),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let path = format!("{path}.{name}");
            if name.starts_with('$') {
                return Err(refuse(
                    &path,
                    "directives of patches are not supported; write the fields themselves",
                ));
            }
            check_nulls(value, &path)
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_nulls(item, &format!("{path}[{index}]"))),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn check_metadata(metadata: &Value) -> Result<(), String> {
    for (name, value) in metadata.as_object().into_iter().flatten() {
        let path = format!("{ROOT}.metadata.{name}");
        if !["labels", "annotations"].contains(&name.as_str()) {
            return Err(refuse(
                &path,
                "only labels and annotations of a pod may be patched; remove it",
            ));
        }
        let ours = [
            names::LABEL_MANAGED_BY,
            names::LABEL_COMPONENT,
            names::ANNOTATION_SAFE_TO_EVICT,
        ];
        for key in value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()) {
            if key.starts_with("escadre.dev/") || ours.contains(&key) {
                return Err(refuse(
                    &format!("{path}[{key}]"),
                    "the operator keeps its own there; use another key",
                ));
            }
        }
    }
    Ok(())
}

fn check_spec(spec: &Value) -> Result<(), String> {
    let path = format!("{ROOT}.spec");
    for (field, why) in CLOSED {
        if spec.get(field).is_some() {
            return Err(refuse(&format!("{path}.{field}"), why));
        }
    }
    for (field, why) in NOT_TRUE {
        if spec.get(field).is_some_and(|value| *value != json!(false)) {
            return Err(refuse(&format!("{path}.{field}"), why));
        }
    }
    check_security(&spec["securityContext"], &format!("{path}.securityContext"))?;
    for volume in list(spec, "volumes") {
        check_volume(volume, &format!("{path}.volumes[{}]", name_of(volume)))?;
    }
    for field in ["containers", "initContainers"] {
        for container in list(spec, field) {
            let path = format!("{path}.{field}[{}]", name_of(container));
            if OUR_CONTAINERS.contains(&name_of(container)) {
                check_own_container(container, &path)?;
            } else {
                check_other_container(container, &path)?;
            }
        }
    }
    Ok(())
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn name_of(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

fn check_volume(volume: &Value, path: &str) -> Result<(), String> {
    if OUR_VOLUMES.contains(&name_of(volume)) {
        return Err(refuse(path, "it holds what is verified and served; use another name"));
    }
    if volume.get("hostPath").is_some() {
        return Err(refuse(
            &format!("{path}.hostPath"),
            "it gives power over the node; use another kind of volume",
        ));
    }
    let mut sources = list(&volume["projected"], "sources");
    if sources.any(|source| source.get("serviceAccountToken").is_some()) {
        return Err(refuse(
            &format!("{path}.projected.sources[].serviceAccountToken"),
            "it gives the pod the account's power; remove it",
        ));
    }
    Ok(())
}

fn check_own_container(container: &Value, path: &str) -> Result<(), String> {
    for name in container
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
    {
        if !OPEN.contains(&name) {
            let instead = match name {
                "image" => "use spec.runtime.image",
                "imagePullPolicy" => "use spec.runtime.imagePullPolicy",
                "args" => "use spec.runtime.args",
                "envFrom" => "name each variable in spec.runtime.env",
                _ => "it decides what is run or how its health is judged; remove it",
            };
            return Err(refuse(&format!("{path}.{name}"), instead));
        }
    }
    for variable in list(container, "env") {
        let name = name_of(variable);
        let upper = name.to_ascii_uppercase();
        let path = format!("{path}.env[{name}]");
        if name.starts_with("ESCADRE_") || name.starts_with("LD_") || name == "GLIBC_TUNABLES" {
            return Err(refuse(
                &path,
                "it would change the program that verifies the model; remove it",
            ));
        }
        if name_of(container) == names::CONTAINER_FETCH && ["HTTPS_PROXY", "NO_PROXY"].contains(&upper.as_str()) {
            return Err(refuse(&path, "use spec.network"));
        }
        let is_secret = ["TOKEN", "SECRET", "PASSWORD", "KEY"]
            .iter()
            .any(|end| upper.ends_with(end));
        if is_secret && variable.get("value").is_some() {
            return Err(refuse(
                &path,
                "a secret does not belong into a manifest; use valueFrom.secretKeyRef",
            ));
        }
    }
    for mount in list(container, "volumeMounts") {
        let place = mount["mountPath"].as_str().unwrap_or_default();
        let is_open = MOUNTABLE
            .iter()
            .any(|folder| place == *folder || place.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
        if !is_open || place.split('/').any(|part| part == "..") {
            return Err(refuse(
                &format!("{path}.volumeMounts[{place}]"),
                "over anything else lie the program and the model that it verifies; mount below /mnt or /dev/shm",
            ));
        }
        if OUR_VOLUMES.contains(&name_of(mount)) {
            return Err(refuse(
                &format!("{path}.volumeMounts[{place}].name"),
                "that volume holds what is verified and served; use a volume of your own",
            ));
        }
    }
    let security = &container["securityContext"];
    for field in ["capabilities", "allowPrivilegeEscalation", "readOnlyRootFilesystem"] {
        if security.get(field).is_some() {
            return Err(refuse(
                &format!("{path}.securityContext.{field}"),
                "our containers have no capability and a read-only file system; remove it",
            ));
        }
    }
    check_security(security, &format!("{path}.securityContext"))
}

fn check_other_container(container: &Value, path: &str) -> Result<(), String> {
    if name_of(container).is_empty() {
        return Err(format!("{path} has no name, by which containers are merged; add one"));
    }
    for mount in list(container, "volumeMounts") {
        let name = name_of(mount);
        if OUR_VOLUMES.contains(&name) && mount["readOnly"] != json!(true) {
            return Err(refuse(
                &format!(
                    "{path}.volumeMounts[{}]",
                    mount["mountPath"].as_str().unwrap_or_default()
                ),
                "another container may only read what is served; add readOnly: true",
            ));
        }
    }
    if list(container, "ports").any(|port| port.get("hostPort").is_some()) {
        return Err(refuse(
            &format!("{path}.ports[].hostPort"),
            "it gives power over the node; remove it",
        ));
    }
    check_security(&container["securityContext"], &format!("{path}.securityContext"))
}

/// What a security context of a pod or a container may not ask for.
fn check_security(security: &Value, path: &str) -> Result<(), String> {
    let node = "it gives power over the node; remove it";
    for field in ["privileged", "allowPrivilegeEscalation"] {
        if security.get(field).is_some_and(|value| *value != json!(false)) {
            return Err(refuse(&format!("{path}.{field}"), node));
        }
    }
    if security["capabilities"].get("add").is_some() {
        return Err(refuse(&format!("{path}.capabilities.add"), node));
    }
    for field in ["procMount", "sysctls", "windowsOptions"] {
        if security.get(field).is_some() {
            return Err(refuse(&format!("{path}.{field}"), node));
        }
    }
    for field in ["seccompProfile", "appArmorProfile"] {
        if security[field]["type"] == json!("Unconfined") {
            return Err(refuse(
                &format!("{path}.{field}"),
                "Unconfined takes a protection of the node away; remove it",
            ));
        }
    }
    Ok(())
}

/// The field by which the items of a list of a pod are told apart. Lists without one are replaced as a whole.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" | "resourceClaims" | "claims"
        | "schedulingGates" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "ports" => Some("containerPort"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

fn merge(into: &mut Value, changes: &Value, path: &str) -> Result<(), String> {
    let Some(fields) = changes.as_object() else {
        *into = changes.clone();
        return Ok(());
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        let place = &mut into[name.as_str()];
        match (merge_key(name), value) {
            (Some(key), Value::Array(items)) => merge_list(place, items, key, &path)?,
            _ => merge(place, value, &path)?,
        }
    }
    Ok(())
}

fn merge_list(into: &mut Value, items: &[Value], key: &str, path: &str) -> Result<(), String> {
    if !into.is_array() {
        *into = json!([]);
    }
    let Some(there) = into.as_array_mut() else {
        return Ok(());
    };
    for item in items {
        let Some(id) = item.get(key) else {
            return Err(format!(
                "{path} has an item without {key}, by which its items are merged; add it"
            ));
        };
        let path = format!("{path}[{}]", id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        match there.iter_mut().find(|one| one.get(key) == Some(id)) {
            Some(one) => merge(one, item, &path)?,
            None => there.push(item.clone()),
        }
    }
    Ok(())
}

/// Containers that a patch adds get what they did not say: no way to more power than they start with.
fn harden(spec: &mut Value) {
    for field in ["containers", "initContainers"] {
        let containers = spec.get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let security = container
                .as_object_mut()
                .map(|fields| fields.entry("securityContext").or_insert(json!({})));
            if let Some(Value::Object(security)) = security {
                security.entry("allowPrivilegeEscalation").or_insert(json!(false));
            }
        }
    }
}

/// The field whose value has the wrong form: the parser itself does not say.
fn misfit(spec: &Value, error: &str) -> String {
    let fields = spec.as_object().into_iter().flatten();
    let mut wrong = fields.filter(|(name, value)| {
        let alone = json!({"containers": [], name.as_str(): value});
        serde_json::from_value::<PodSpec>(alone).is_err()
    });
    let path = wrong
        .next()
        .map_or_else(|| ROOT.to_owned(), |(name, _)| format!("{ROOT}.spec.{name}"));
    format!("{path} does not have the form that it has in a pod: {error}; correct it")
}

/// The path of the first thing in the patch that the pod does not have: a field that a pod does not know.
fn lost(changes: &Value, pod: &Value, path: &str) -> Option<String> {
    match (changes, pod) {
        (Value::Object(fields), _) => fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match (pod.get(name), value) {
                (Some(there), Value::Array(items)) => lost_items(items, there, merge_key(name), &path),
                (Some(there), value) => lost(value, there, &path),
                (None, _) => Some(path),
            }
        }),
        (Value::Array(items), there) => lost_items(items, there, None, path),
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), _) => None,
    }
}

fn lost_items(items: &[Value], there: &Value, key: Option<&str>, path: &str) -> Option<String> {
    items.iter().enumerate().find_map(|(index, item)| {
        let (found, label) = match key {
            Some(key) => {
                let id = item.get(key);
                let found = there
                    .as_array()
                    .and_then(|all| all.iter().find(|one| one.get(key) == id));
                let label = id.map_or_else(String::new, |id| {
                    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
                });
                (found, label)
            }
            None => (there.get(index), index.to_string()),
        };
        let path = format!("{path}[{label}]");
        match found {
            Some(found) => lost(item, found, &path),
            None => Some(path),
        }
    })
}
