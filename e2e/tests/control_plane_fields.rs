//! What each group of fields does to the pods and to what stands around them, judged by a real API server. What the
//! processes make of it is in the tests of the runtime.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::escadre;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::testing::TestNamespace;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_mins(1);
/// Longer than the operator's memory of which kinds the cluster has, and one of its looks at what is not settled.
const LATER: Duration = Duration::from_mins(3);

/// The only pod of a deployment, as soon as it satisfies `check`.
async fn await_pod(namespace: &TestNamespace, name: &str, what: &str, check: impl Fn(&Pod) -> bool) -> Pod {
    let api: Api<Pod> = namespace.api();
    namespace
        .await_condition(what, SOON, async || {
            let pods = api.list(&ListParams::default().labels(&names::selector(name))).await?;
            let mut living = pods
                .items
                .into_iter()
                .filter(|pod| pod.metadata.deletion_timestamp.is_none());
            Ok(living.next().filter(|pod| living.next().is_none() && check(pod)))
        })
        .await
        .unwrap()
}

/// The message of `Accepted`, as soon as it has this reason for the newest spec.
async fn await_accepted(namespace: &TestNamespace, name: &str, reason: &str, deadline: Duration) -> String {
    let api: Api<LlmDeployment> = namespace.api();
    namespace
        .await_condition(&format!("Accepted of {name} to say {reason}"), deadline, async || {
            let object = api.get(name).await?;
            let generation = object.metadata.generation;
            let conditions = object.status.map(|status| status.conditions).unwrap_or_default();
            let found = conditions
                .into_iter()
                .find(|one| one.type_ == "Accepted" && one.reason == reason && one.observed_generation == generation);
            Ok(found.map(|one| one.message))
        })
        .await
        .unwrap()
}

async fn create_config_map(namespace: &TestNamespace, name: &str, data: Value) {
    let config_map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
    let api: Api<ConfigMap> = namespace.api();
    api.create(&PostParams::default(), &config_map).await.unwrap();
}

fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap()
}

fn fetch(pod: &Pod) -> &Container {
    &spec(pod).init_containers.as_ref().unwrap()[0]
}

fn runtime(pod: &Pod) -> &Container {
    let containers = &spec(pod).containers;
    containers
        .iter()
        .find(|one| one.name == names::CONTAINER_RUNTIME)
        .unwrap()
}

fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let found = container.env.iter().flatten().find(|one| one.name == name)?;
    found.value.as_deref()
}

fn has_argument(container: &Container, argument: &str) -> bool {
    container.args.iter().flatten().any(|one| one == argument)
}

#[tokio::test]
async fn runtime_fields_reach_the_container_that_serves() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = Deployment::named("run").set(
        "/spec/runtime",
        json!({
            "imagePullPolicy": "Never",
            "imagePullSecrets": [{"name": "registry"}],
            "args": ["--threads=3"],
            "env": [
                {"name": "MODE", "value": "seven"},
                {"name": "API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
        }),
    );
    namespace.create_deployment(deployment).await.unwrap();
    let pod = await_pod(&namespace, "run", "the pod", |_| true).await;
    assert_eq!(runtime(&pod).image_pull_policy.as_deref(), Some("Never"));
    assert_eq!(spec(&pod).image_pull_secrets.as_ref().unwrap()[0].name, "registry");
    assert!(has_argument(runtime(&pod), "--threads=3") && !has_argument(fetch(&pod), "--threads=3"));
    assert_eq!(variable(runtime(&pod), "MODE"), Some("seven"));
    assert_eq!(variable(fetch(&pod), "MODE"), None);
    let token = runtime(&pod)
        .env
        .iter()
        .flatten()
        .find(|one| one.name == "API_TOKEN")
        .unwrap();
    let reference = token.value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
    assert_eq!((reference.name.as_str(), reference.key.as_str()), ("s", "k"));
}

#[tokio::test]
async fn credentials_and_format_reach_the_container_that_fetches() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = Deployment::named("hub")
        .set("/spec/model/secretRef", json!({"name": "hub-token"}))
        .set("/spec/model/format", json!("GGUF"));
    namespace.create_deployment(deployment).await.unwrap();
    let pod = await_pod(&namespace, "hub", "the pod", |_| true).await;
    let source = &fetch(&pod).env_from.as_ref().unwrap()[0];
    let secret = source.secret_ref.as_ref().unwrap();
    assert_eq!((secret.name.as_str(), secret.optional), ("hub-token", Some(false)));
    assert_eq!(source.prefix.as_deref(), Some(names::ENV_SECRET_PREFIX));
    assert!(has_argument(fetch(&pod), "--credentials"));
    assert_eq!(
        runtime(&pod).env_from,
        None,
        "the container that serves has no credentials"
    );
    assert!(has_argument(fetch(&pod), "--format=gguf") && has_argument(runtime(&pod), "--format=gguf"));
}

#[tokio::test]
async fn overlay_files_are_a_snapshot_that_follows_its_config_map() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = Deployment::named("lay")
        .set("/spec/rollout/revisionHistoryLimit", json!(0))
        .set(
            "/spec/files",
            json!([
                {"path": "chat_template.jinja", "configMapRef": {"name": "templates", "key": "chat"}},
                {"path": "generation_config.json", "inline": "{}"},
            ]),
        );
    namespace.create_deployment(deployment).await.unwrap();
    let message = await_accepted(&namespace, "lay", "DependencyMissing", SOON).await;
    assert!(
        message.contains("spec.files[chat_template.jinja].configMapRef") && message.contains("create it"),
        "{message}"
    );
    create_config_map(&namespace, "templates", json!({"other": "x"})).await;
    let config_maps: Api<ConfigMap> = namespace.api();
    namespace
        .await_condition("the missing key to be named", SOON, async || {
            let message = await_accepted(&namespace, "lay", "DependencyMissing", SOON).await;
            Ok(message.contains("the key chat").then_some(()))
        })
        .await
        .unwrap();

    // It heals without an edit of the object.
    let data = |text: &str| Patch::Merge(json!({"data": {"chat": text}}));
    config_maps
        .patch("templates", &PatchParams::default(), &data("first"))
        .await
        .unwrap();
    let pod = await_pod(&namespace, "lay", "the pod with its files", |_| true).await;
    let snapshot = snapshot_of(&pod);
    let stored = config_maps.get(&snapshot).await.unwrap();
    assert_eq!(stored.immutable, Some(true));
    assert_eq!(stored.owner_references()[0].kind, "LlmDeployment");
    assert_eq!(stored.labels()[names::LABEL_MANAGED_BY], names::MANAGED_BY);
    let texts: Vec<&String> = stored.data.as_ref().unwrap().values().collect();
    assert_eq!(texts, ["first", "{}"]);
    assert!(has_argument(runtime(&pod), "--overlay=/overlay") && !has_argument(fetch(&pod), "--overlay=/overlay"));
    let mounts = runtime(&pod).volume_mounts.as_ref().unwrap();
    let mount = mounts.iter().find(|one| one.name == names::VOLUME_OVERLAY).unwrap();
    assert_eq!(
        (mount.mount_path.as_str(), mount.read_only),
        (names::PATH_OVERLAY, Some(true))
    );

    // Whoever deletes it: it comes back.
    config_maps.delete(&snapshot, &DeleteParams::default()).await.unwrap();
    namespace
        .await_condition("the snapshot to come back", SOON, async || {
            Ok(config_maps.get_opt(&snapshot).await?)
        })
        .await
        .unwrap();

    // New content, new revision; the old snapshot goes with its record.
    config_maps
        .patch("templates", &PatchParams::default(), &data("second"))
        .await
        .unwrap();
    let before = pod.name_any();
    let pod = await_pod(&namespace, "lay", "a pod with the new content", |pod| {
        pod.name_any() != before
    })
    .await;
    let stored = config_maps.get(&snapshot_of(&pod)).await.unwrap();
    assert!(stored.data.unwrap().values().any(|text| text == "second"));
    namespace
        .await_condition("the old snapshot to go", SOON, async || {
            Ok(config_maps.get_opt(&snapshot).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
}

fn snapshot_of(pod: &Pod) -> String {
    let volumes = spec(pod).volumes.as_ref().unwrap();
    let volume = volumes.iter().find(|one| one.name == names::VOLUME_OVERLAY).unwrap();
    let config_map = volume.config_map.as_ref().unwrap();
    let paths: Vec<&str> = config_map
        .items
        .iter()
        .flatten()
        .map(|item| item.path.as_str())
        .collect();
    assert_eq!(paths, ["chat_template.jinja", "generation_config.json"]);
    config_map.name.clone()
}

#[tokio::test]
async fn claims_reach_the_pod_and_the_container_that_serves() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let claims = json!([{"name": "device", "resourceClaimTemplateName": "one-gpu"}]);
    namespace
        .create_deployment(Deployment::named("dra").set("/spec/resources/claims", claims))
        .await
        .unwrap();
    let pod = await_pod(&namespace, "dra", "the pod", |_| true).await;
    let claim = &spec(&pod).resource_claims.as_ref().unwrap()[0];
    assert_eq!(
        (claim.name.as_str(), claim.resource_claim_template_name.as_deref()),
        ("device", Some("one-gpu"))
    );
    let resources = runtime(&pod).resources.as_ref().unwrap();
    assert_eq!(resources.claims.as_ref().unwrap()[0].name, "device");
    let of_fetch = fetch(&pod)
        .resources
        .as_ref()
        .and_then(|resources| resources.claims.as_ref());
    assert_eq!(of_fetch, None);
}

#[tokio::test]
async fn budget_counts_whole_pods_and_follows_the_spec_without_new_pods() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = Deployment::named("pdb")
        .replicas(1)
        .set("/spec/disruption/minAvailable", json!("34%"));
    namespace.create_deployment(deployment).await.unwrap();
    let budgets: Api<PodDisruptionBudget> = namespace.api();
    let await_budget = async |pods: i32| {
        namespace
            .await_condition(&format!("a budget of {pods}"), SOON, async || {
                let budget = budgets.get_opt("pdb").await?;
                let min = budget
                    .and_then(|budget| budget.spec)
                    .and_then(|spec| spec.min_available);
                Ok((min == Some(IntOrString::Int(pods))).then_some(()))
            })
            .await
            .unwrap();
    };
    await_budget(1).await;
    let pod = await_pod(&namespace, "pdb", "the pod", |_| true).await;
    assert_eq!(pod.annotations()[names::ANNOTATION_SAFE_TO_EVICT], "true");
    let budget = budgets.get("pdb").await.unwrap();
    assert_eq!(budget.owner_references()[0].name, "pdb");
    let selector = budget.spec.unwrap().selector.unwrap().match_labels.unwrap();
    assert!(selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value)));

    // Somebody changes it: it is put right.
    let drift = Patch::Merge(json!({"spec": {"minAvailable": 9}}));
    budgets.patch("pdb", &PatchParams::default(), &drift).await.unwrap();
    await_budget(1).await;

    namespace
        .edit_deployment("pdb", json!({"disruption": {"safeToEvict": false}}))
        .await
        .unwrap();
    let same = await_pod(&namespace, "pdb", "the annotation to change", |pod| {
        pod.annotations()[names::ANNOTATION_SAFE_TO_EVICT] == "false"
    })
    .await;
    assert_eq!(same.uid(), pod.uid(), "the pod was replaced");

    namespace.edit_deployment("pdb", json!({"replicas": 4})).await.unwrap();
    await_budget(2).await;
    namespace
        .edit_deployment("pdb", json!({"disruption": {"minAvailable": null}}))
        .await
        .unwrap();
    namespace
        .await_condition("the budget to go", SOON, async || {
            Ok(budgets.get_opt("pdb").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn foreign_budget_is_left_alone_and_named() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let budgets: Api<PodDisruptionBudget> = namespace.api();
    let foreign =
        json!({"metadata": {"name": "taken"}, "spec": {"minAvailable": 7, "selector": {"matchLabels": {"a": "b"}}}});
    let foreign = budgets
        .create(&PostParams::default(), &serde_json::from_value(foreign).unwrap())
        .await
        .unwrap();
    namespace
        .create_deployment(Deployment::named("taken").set("/spec/disruption/minAvailable", json!(1)))
        .await
        .unwrap();
    let message = await_accepted(&namespace, "taken", "InvalidSpec", SOON).await;
    assert!(
        message.contains("a PodDisruptionBudget named taken exists already"),
        "{message}"
    );
    // Its status is the business of the cluster's own controller.
    let after = budgets.get("taken").await.unwrap();
    assert_eq!((after.spec, after.metadata.owner_references), (foreign.spec, None));
}

#[tokio::test]
async fn monitor_is_made_only_where_the_cluster_has_the_kind() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace.create_deployment(Deployment::named("auto")).await.unwrap();
    await_pod(&namespace, "auto", "the pod without the kind", |_| true).await;
    let enabled = Deployment::named("enabled").set("/spec/observability/podMonitor", json!("Enabled"));
    namespace.create_deployment(enabled).await.unwrap();
    let message = await_accepted(&namespace, "enabled", "DependencyMissing", SOON).await;
    assert!(
        message.contains("spec.observability.podMonitor") && message.contains("or set Auto"),
        "{message}"
    );

    install_pod_monitors(&namespace).await;
    let gvk = GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor");
    let kind = ApiResource::from_gvk_with_plural(&gvk, "podmonitors");
    let monitors: Api<DynamicObject> = Api::namespaced_with(namespace.client().clone(), namespace.name(), &kind);
    await_accepted(&namespace, "enabled", "Valid", LATER).await;
    let monitor = namespace
        .await_condition("the monitor", LATER, async || Ok(monitors.get_opt("enabled").await?))
        .await
        .unwrap();
    assert_eq!(monitor.owner_references()[0].name, "enabled");
    assert_eq!(
        monitor.data["spec"]["podMetricsEndpoints"][0]["port"],
        names::PORT_ADMIN
    );
    assert_eq!(
        monitor.data["spec"]["selector"]["matchLabels"][names::LABEL_DEPLOYMENT],
        "enabled"
    );
    namespace
        .edit_deployment("enabled", json!({"observability": {"podMonitor": "Disabled"}}))
        .await
        .unwrap();
    namespace
        .await_condition("the monitor to go", SOON, async || {
            Ok(monitors.get_opt("enabled").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
}

/// The kind as the Prometheus operator has it, as far as the API server is concerned.
async fn install_pod_monitors(namespace: &TestNamespace) {
    let definition = json!({
        "metadata": {"name": "podmonitors.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor", "listKind": "PodMonitorList"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
            }],
        },
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(namespace.client().clone());
    definitions
        .create(&PostParams::default(), &serde_json::from_value(definition).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn account_labels_and_annotations_reach_the_pod() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let accounts: Api<ServiceAccount> = namespace.api();
    let account = serde_json::from_value(json!({"metadata": {"name": "models"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let deployment = Deployment::named("meta")
        .set("/spec/serviceAccountName", json!("models"))
        .set("/spec/podLabels", json!({"team": "search"}))
        .set("/spec/podAnnotations", json!({"example.com/x": "y"}));
    namespace.create_deployment(deployment).await.unwrap();
    let pod = await_pod(&namespace, "meta", "the pod", |_| true).await;
    assert_eq!(spec(&pod).service_account_name.as_deref(), Some("models"));
    assert_eq!(spec(&pod).automount_service_account_token, Some(false));
    assert_eq!(pod.labels()["team"], "search");
    assert_eq!(pod.annotations()["example.com/x"], "y");
}

#[tokio::test]
async fn proxy_and_certificates_reach_the_container_that_fetches() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = Deployment::named("net").set(
        "/spec/network",
        json!({"httpsProxy": "http://proxy:3128", "noProxy": ".svc", "caBundleRef": {"name": "corporate"}}),
    );
    namespace.create_deployment(deployment).await.unwrap();
    let message = await_accepted(&namespace, "net", "DependencyMissing", SOON).await;
    assert!(
        message.contains("spec.network.caBundleRef") && message.contains("corporate"),
        "{message}"
    );
    create_config_map(&namespace, "corporate", json!({"ca.crt": "PEM"})).await;
    let pod = await_pod(&namespace, "net", "the pod", |_| true).await;
    assert_eq!(variable(fetch(&pod), "HTTPS_PROXY"), Some("http://proxy:3128"));
    assert_eq!(variable(fetch(&pod), "NO_PROXY"), Some(".svc"));
    assert_eq!(variable(runtime(&pod), "HTTPS_PROXY"), None);
    assert!(has_argument(fetch(&pod), "--ca-bundle=/ca-bundle/ca.crt"));
    let mounts = |container: &Container| {
        let mounts = container.volume_mounts.iter().flatten();
        mounts.filter(|one| one.name == names::VOLUME_CA).count()
    };
    assert_eq!((mounts(fetch(&pod)), mounts(runtime(&pod))), (1, 0));
}

#[tokio::test]
async fn overrides_change_the_pod_and_what_they_may_not_is_named() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let overrides = json!({
        "metadata": {"annotations": {"example.com/o": "p"}},
        "spec": {
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "containers": [
                {"name": "runtime", "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]},
                {"name": "logs", "image": "escadre.dev/pause:1"},
            ],
        },
    });
    namespace
        .create_deployment(Deployment::named("over").set("/spec/podOverrides", overrides))
        .await
        .unwrap();
    let pod = await_pod(&namespace, "over", "the pod", |_| true).await;
    assert_eq!(pod.annotations()["example.com/o"], "p");
    assert_eq!(spec(&pod).containers.len(), 2);
    let mounts = runtime(&pod).volume_mounts.as_ref().unwrap();
    assert!(mounts.iter().any(|mount| mount.mount_path == "/dev/shm"));

    for (refused, words) in [
        (
            json!({"spec": {"hostNetwork": true}}),
            "spec.podOverrides.spec.hostNetwork is refused",
        ),
        (
            json!({"spec": {"hostNetwork": null, "containers": [{"name": "runtime", "image": "evil"}]}}),
            "spec.podOverrides.spec.containers[runtime].image is refused: use spec.runtime.image",
        ),
        (
            json!({"spec": {"containers": null, "dnsPolice": "Default"}}),
            "spec.podOverrides.spec.dnsPolice is not a field of a pod",
        ),
    ] {
        namespace
            .edit_deployment("over", json!({"podOverrides": refused}))
            .await
            .unwrap();
        let message = await_accepted(&namespace, "over", "InvalidSpec", SOON).await;
        assert!(message.contains(words), "{message}");
        let still = await_pod(&namespace, "over", "the old pod", |_| true).await;
        assert_eq!(still.uid(), pod.uid(), "a refused patch changed the pods");
    }
}
