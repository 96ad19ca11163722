//! The chart's permissions: the operator runs under its own account through the life of a deployment, and the API
//! server's audit log shows that nothing was forbidden and that nothing was granted in vain.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::cluster::Cluster;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::operator::{OperatorChild, account_kubeconfig};
use escadre_e2e::testing::{OwnCluster, TestNamespace};
use escadre_e2e::{chart, escadre};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

const SOON: Duration = Duration::from_secs(40);
const ACCOUNT: &str = "escadre-operator";

/// What an account asked for or may ask for: API group, resource with subresource, verb.
type Permission = (String, String, String);

/// Granted, and rightly not seen here.
const UNSEEN: [(&str, &str, &str, &str); 4] = [
    (
        "escadre.dev",
        "llmdeployments/finalizers",
        "update",
        "asked by the admission plugin OwnerReferencesPermissionEnforcement, which is off by default",
    ),
    (
        "events.k8s.io",
        "events",
        "patch",
        "the same event again within minutes is counted in the first one",
    ),
    (
        "",
        "pods",
        "get",
        "asked when a pod hides behind changed labels, which the admission policy refuses",
    ),
    (
        "",
        "pods",
        "patch",
        "puts labels of a pod right, which the admission policy keeps others from changing",
    ),
];

/// The operator of the whole cluster would do the other one's work: one at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn cluster() -> &'static OwnCluster {
    static SHARED: OnceCell<OwnCluster> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            let policy = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
            let rules = json!({
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "omitStages": ["RequestReceived"],
                "rules": [
                    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
                    {"level": "None"},
                ],
            });
            std::fs::write(policy.path(), rules.to_string()).unwrap();
            let file = policy.path().display().to_string();
            let cluster = OwnCluster::start("rbac", &["--control-plane-only", "--audit-policy", &file])
                .await
                .unwrap();
            escadre::install_resource(cluster.cluster()).await.unwrap();
            install_pod_monitors(cluster.cluster()).await;
            cluster
        })
        .await
}

/// The kind that the Prometheus operator brings, without its schema.
async fn install_pod_monitors(cluster: &Cluster) {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "podmonitors.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    let file = cluster.folder().join("pod-monitors.json");
    std::fs::write(&file, definition.to_string()).unwrap();
    let file = file.display().to_string();
    cluster.output("kubectl", &["apply", "-f", &file]).await.unwrap();
    let name = "customresourcedefinition/podmonitors.monitoring.coreos.com";
    let arguments = ["wait", "--for=condition=Established", name, "--timeout=30s"];
    cluster.output("kubectl", &arguments).await.unwrap();
}

/// The whole life of a deployment that has everything a deployment can have.
async fn live(namespace: &TestNamespace) {
    let api: Api<LlmDeployment> = namespace.api();
    let files = json!([{"path": "generation_config.json", "inline": "{}"}]);
    let deployment = Deployment::named("life")
        .replicas(2)
        .set("/spec/files", files)
        // Records and snapshots that are not kept are deleted.
        .set("/spec/rollout/revisionHistoryLimit", json!(0))
        .set("/spec/disruption", json!({"minAvailable": 1}))
        .set("/spec/observability", json!({"podMonitor": "Enabled"}));
    let typed = serde_json::from_value(deployment.into_value()).unwrap();
    api.create(&PostParams::default(), &typed).await.unwrap();
    let first = await_pods(namespace, 2, |_| true).await;
    let edit = json!({"spec": {
        "model": {"servedName": "second"},
        "files": null,
        "disruption": {"minAvailable": null},
        "observability": {"podMonitor": "Disabled"},
    }});
    api.patch("life", &PatchParams::default(), &Patch::Merge(edit))
        .await
        .unwrap();
    await_pods(namespace, 2, |name| !first.contains(name)).await;
    for size in [3, 1] {
        let edit = json!({"spec": {"replicas": size}});
        api.patch("life", &PatchParams::default(), &Patch::Merge(edit))
            .await
            .unwrap();
        await_pods(namespace, size, |_| true).await;
    }
    namespace
        .await_condition("the status of the last edit", SOON, async || {
            let object = api.get("life").await?;
            let generation = object.metadata.generation;
            Ok(object
                .status
                .filter(|status| status.observed_generation == generation && status.replicas == 1))
        })
        .await
        .unwrap();
    api.delete("life", &DeleteParams::default()).await.unwrap();
    await_pods(namespace, 0, |_| true).await;
}

async fn await_pods(namespace: &TestNamespace, count: usize, is_right: impl Fn(&String) -> bool) -> BTreeSet<String> {
    let api: Api<Pod> = namespace.api();
    let selector = ListParams::default().labels(&names::selector("life"));
    namespace
        .await_condition(&format!("{count} pods"), SOON * 2, async || {
            let names: BTreeSet<String> = api.list(&selector).await?.iter().map(Pod::name_any).collect();
            Ok((names.len() == count && names.iter().all(&is_right)).then_some(names))
        })
        .await
        .unwrap()
}

/// What an account asked for, and what it was refused.
fn asked(cluster: &Cluster, system: &str) -> (BTreeSet<Permission>, Vec<String>) {
    let user = format!("system:serviceaccount:{system}:{ACCOUNT}");
    let log = std::fs::read_to_string(cluster.audit_log()).unwrap();
    let (mut asked, mut refused) = (BTreeSet::new(), Vec::new());
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["user"]["username"] != json!(user) {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let mut resource = text(&object["resource"]);
        if let Some(subresource) = object["subresource"].as_str() {
            resource = format!("{resource}/{subresource}");
        }
        let is_forbidden = event["annotations"]["authorization.k8s.io/decision"] == json!("forbid");
        if is_forbidden || event["responseStatus"]["code"] == json!(403) {
            refused.push(line.to_owned());
        }
        asked.insert((text(&object["apiGroup"]), resource, text(&event["verb"])));
    }
    (asked, refused)
}

/// What the chart's roles grant, from the API server.
async fn granted(cluster: &Cluster, roles: &[&[&str]]) -> BTreeSet<Permission> {
    let mut granted = BTreeSet::new();
    for role in roles {
        let arguments = [&["get", "--output=json"][..], role].concat();
        let role: Value = serde_json::from_str(&cluster.output("kubectl", &arguments).await.unwrap()).unwrap();
        for rule in role["rules"].as_array().unwrap() {
            let words = |key: &str| -> Vec<String> { serde_json::from_value(rule[key].clone()).unwrap() };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    for verb in words("verbs") {
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    granted
}

/// Whether it is the `create` that server-side apply demands besides `patch` when the object is not there yet; the log has
/// the patch only.
fn is_applied(asked: &BTreeSet<Permission>, permission: &Permission) -> bool {
    let (group, resource, verb) = permission;
    verb == "create" && asked.contains(&(group.clone(), resource.clone(), "patch".to_owned()))
}

async fn judge(cluster: &Cluster, system: &str, roles: &[&[&str]]) {
    let (asked, refused) = asked(cluster, system);
    assert!(refused.is_empty(), "forbidden:\n{}", refused.join("\n"));
    assert!(asked.len() > 5, "the audit log has only {asked:?}");
    let granted = granted(cluster, roles).await;
    let unseen = UNSEEN.map(|(group, resource, verb, _)| (group.to_owned(), resource.to_owned(), verb.to_owned()));
    let vain: Vec<&Permission> = granted
        .difference(&asked)
        .filter(|permission| !unseen.contains(permission) && !is_applied(&asked, permission))
        .collect();
    assert!(vain.is_empty(), "granted and never used: {vain:?}");
}

async fn stop(operator: OperatorChild) {
    let log = operator.log();
    assert!(operator.stop().await.unwrap().success());
    assert!(!log.contains("forbidden"), "{log}");
}

#[tokio::test]
async fn cluster_mode_is_never_forbidden_anything_and_uses_all_that_it_has() {
    const SYSTEM: &str = "escadre-wide";
    let _alone = ALONE.lock().await;
    let own = cluster().await;
    let (cluster, namespace) = (own.cluster(), own.namespace().await.unwrap());
    cluster
        .output("kubectl", &["create", "namespace", SYSTEM])
        .await
        .unwrap();
    chart::apply(cluster, SYSTEM, &["rbac.yaml"], &[]).await.unwrap();
    let kubeconfig = account_kubeconfig(cluster, SYSTEM, ACCOUNT).await.unwrap();
    // The lease is in the account's namespace without being told.
    let operator = OperatorChild::start(
        cluster,
        18201,
        Some(&kubeconfig),
        &["--leader-election", "--log-format=json"],
    )
    .unwrap();
    live(&namespace).await;
    let line = operator
        .log()
        .lines()
        .find(|line| line.contains("pod created"))
        .unwrap()
        .to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["span"]["object"], "life", "{line}");
    assert_eq!(line["span"]["namespace"], json!(namespace.name()), "{line}");
    assert!(line["span"]["generation"].is_i64(), "{line}");
    stop(operator).await;
    let policies = format!("{ACCOUNT}-policies-{SYSTEM}");
    let roles = [
        &["clusterrole", ACCOUNT][..],
        &["role", "escadre-operator-lease", "--namespace", SYSTEM],
        &["clusterrole", &policies],
    ];
    judge(cluster, SYSTEM, &roles).await;
}

#[tokio::test]
async fn namespaced_mode_works_with_rights_in_its_namespace_only() {
    const SYSTEM: &str = "escadre-narrow";
    let _alone = ALONE.lock().await;
    let own = cluster().await;
    let (cluster, namespace) = (own.cluster(), own.namespace().await.unwrap());
    let other = own.namespace().await.unwrap();
    cluster
        .output("kubectl", &["create", "namespace", SYSTEM])
        .await
        .unwrap();
    let watched = format!("watchNamespace={}", namespace.name());
    chart::apply(cluster, SYSTEM, &["rbac.yaml"], &[&watched])
        .await
        .unwrap();
    let kubeconfig = account_kubeconfig(cluster, SYSTEM, ACCOUNT).await.unwrap();
    let watched = format!("--namespace={}", namespace.name());
    let operator = OperatorChild::start(cluster, 18202, Some(&kubeconfig), &["--leader-election", &watched]).unwrap();
    live(&namespace).await;
    let account = format!("--as=system:serviceaccount:{SYSTEM}:{ACCOUNT}");
    let elsewhere = ["auth", "can-i", "create", "pods", "--namespace", other.name(), &account];
    let answer = cluster.output("kubectl", &elsewhere).await.unwrap_err().to_string();
    assert!(answer.contains("failed"), "{answer}");
    stop(operator).await;
    let policies = format!("{ACCOUNT}-policies-{SYSTEM}");
    let roles = [
        &["role", ACCOUNT, "--namespace", namespace.name()][..],
        &["role", "escadre-operator-lease", "--namespace", SYSTEM],
        &["clusterrole", &policies],
    ];
    judge(cluster, SYSTEM, &roles).await;
}
