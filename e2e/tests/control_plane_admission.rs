//! The chart's admission policy on a real API server: our keys on pods are the operator's, everything else is free.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::cluster::Cluster;
use escadre_e2e::fixtures::{self, Deployment};
use escadre_e2e::operator::{OperatorChild, account_kubeconfig};
use escadre_e2e::testing::{self, TestNamespace};
use escadre_e2e::{chart, escadre};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(30);
const SYSTEM: &str = "escadre-admission";

/// The shared control plane with the policy in force, a namespace, and the cluster.
async fn start() -> (&'static Cluster, TestNamespace) {
    static POLICY: OnceCell<()> = OnceCell::const_new();
    let shared = testing::control_plane().await.unwrap();
    let cluster = shared.own().unwrap();
    let namespace = shared.namespace().await.unwrap();
    POLICY
        .get_or_init(async || {
            escadre::install_resource(cluster).await.unwrap();
            cluster
                .output("kubectl", &["create", "namespace", SYSTEM])
                .await
                .unwrap();
            chart::apply(cluster, SYSTEM, &["rbac.yaml", "admission-policy.yaml"], &[])
                .await
                .unwrap();
            // A new policy is in force a moment later.
            let probe = pod("probe", &json!({names::LABEL_SLOT: "1"}));
            namespace
                .await_condition("the policy to be in force", SOON, async || {
                    let api: Api<Pod> = namespace.api();
                    let parameters = PostParams {
                        dry_run: true,
                        ..PostParams::default()
                    };
                    Ok(api.create(&parameters, &probe).await.err().map(drop))
                })
                .await
                .unwrap();
        })
        .await;
    (cluster, namespace)
}

fn pod(name: &str, labels: &Value) -> Pod {
    let mut pod = fixtures::pod(name, "escadre.dev/pause:1");
    pod["metadata"]["labels"] = labels.clone();
    serde_json::from_value(pod).unwrap()
}

async fn refusal(namespace: &TestNamespace, pod: &Pod) -> String {
    let api: Api<Pod> = namespace.api();
    let error = api.create(&PostParams::default(), pod).await.unwrap_err();
    let kube::Error::Api(status) = error else {
        panic!("not an answer: {error}")
    };
    assert_eq!(status.code, 403, "{}", status.message);
    status.message
}

#[tokio::test]
async fn foreign_pod_with_our_keys_is_refused_and_told_what_to_do() {
    let (_, namespace) = start().await;
    for label in [names::LABEL_DEPLOYMENT, names::LABEL_REVISION, names::LABEL_SLOT] {
        let message = refusal(&namespace, &pod("foreign", &json!({label: "chat"}))).await;
        assert!(message.contains(label), "{message}");
        assert!(message.contains("create an LlmDeployment"), "{message}");
    }
    let both = json!({names::LABEL_MANAGED_BY: names::MANAGED_BY, names::LABEL_COMPONENT: names::COMPONENT_RUNTIME});
    let message = refusal(&namespace, &pod("foreign", &both)).await;
    assert!(message.contains("managed-by=escadre"), "{message}");
    let mut annotated = pod("foreign", &json!({}));
    annotated
        .annotations_mut()
        .insert(names::ANNOTATION_APPLIED.to_owned(), "x".to_owned());
    let message = refusal(&namespace, &annotated).await;
    assert!(message.contains(names::ANNOTATION_APPLIED), "{message}");
}

#[tokio::test]
async fn pods_of_others_are_as_free_as_before() {
    let (cluster, namespace) = start().await;
    let api: Api<Pod> = namespace.api();
    for (name, labels) in [
        ("plain", json!({})),
        ("component", json!({names::LABEL_COMPONENT: names::COMPONENT_RUNTIME})),
        (
            "managed",
            json!({names::LABEL_MANAGED_BY: "Helm", names::LABEL_COMPONENT: names::COMPONENT_RUNTIME}),
        ),
    ] {
        api.create(&PostParams::default(), &pod(name, &labels)).await.unwrap();
    }
    let arguments = ["label", "pod", "plain", "team=navy", "--namespace", namespace.name()];
    cluster.output("kubectl", &arguments).await.unwrap();
    let arguments = ["annotate", "pod", "plain", "note=1", "--namespace", namespace.name()];
    cluster.output("kubectl", &arguments).await.unwrap();
    // What a kubelet does.
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}]}});
    api.patch_status("plain", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let mut labels = pod("mine", &json!({"a": "b"}));
    labels.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    api.create(&PostParams::default(), &labels).await.unwrap();
    api.delete("mine", &kube::api::DeleteParams::default()).await.unwrap();
    let freed = json!({"metadata": {"finalizers": null}});
    api.patch("mine", &PatchParams::default(), &Patch::Merge(freed))
        .await
        .unwrap();
}

#[tokio::test]
async fn operator_makes_its_pods_under_its_own_account_and_nobody_relabels_them() {
    let (cluster, namespace) = start().await;
    let kubeconfig = account_kubeconfig(cluster, SYSTEM, "escadre-operator").await.unwrap();
    let watched = format!("--leader-election-namespace={SYSTEM}");
    let operator = OperatorChild::start(cluster, 18191, Some(&kubeconfig), &["--leader-election", &watched]).unwrap();
    let deployment = Deployment::named("chat").into_value();
    let typed: LlmDeployment = serde_json::from_value(deployment).unwrap();
    namespace.api().create(&PostParams::default(), &typed).await.unwrap();
    let api: Api<Pod> = namespace.api();
    let selector = ListParams::default().labels(&names::selector("chat"));
    let name = namespace
        .await_condition("the operator's pod", SOON, async || {
            Ok(api.list(&selector).await?.items.first().map(Pod::name_any))
        })
        .await
        .unwrap();

    let in_namespace = ["--namespace", namespace.name()];
    for change in [
        &["label", "--overwrite", "pod", &name, "escadre.dev/slot=7"][..],
        &["label", "pod", &name, "escadre.dev/deployment-"],
        &["label", "--overwrite", "pod", &name, "app.kubernetes.io/managed-by=me"],
        &["annotate", "pod", &name, "escadre.dev/applied=1"],
    ] {
        let arguments = [change, &in_namespace].concat();
        let error = cluster.output("kubectl", &arguments).await.unwrap_err().to_string();
        assert!(error.contains("Escadre") && error.contains("operator"), "{error}");
    }
    let arguments = [&["label", "pod", &name, "team=navy"][..], &in_namespace].concat();
    cluster.output("kubectl", &arguments).await.unwrap();
    let api: Api<LlmDeployment> = namespace.api();
    api.delete("chat", &kube::api::DeleteParams::default()).await.unwrap();
    // The garbage collector; it looks for new kinds every 30 s only.
    let pods: Api<Pod> = namespace.api();
    namespace
        .await_condition("the pod to be collected", SOON * 3, async || {
            Ok(pods.get_opt(&name).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
    assert!(operator.stop().await.unwrap().success());
}
