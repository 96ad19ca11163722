//! A control plane without a node: comes up, says its version, gives each test a namespace.

use std::time::Duration;

use escadre_e2e::cluster::KUBERNETES_VERSION;
use escadre_e2e::fixtures;
use escadre_e2e::testing::control_plane;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

#[tokio::test]
async fn control_plane_answers_with_the_pinned_version() {
    let client = control_plane().await.unwrap().client().await.unwrap();
    let version = client.apiserver_version().await.unwrap();
    assert_eq!(version.git_version, KUBERNETES_VERSION);
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
}

#[tokio::test]
async fn namespaces_of_tests_are_apart() {
    let cluster = control_plane().await.unwrap();
    let (one, other) = (cluster.namespace().await.unwrap(), cluster.namespace().await.unwrap());
    assert_ne!(one.name(), other.name());
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "same"}})).unwrap();
    one.api::<ConfigMap>()
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    assert!(other.api::<ConfigMap>().get_opt("same").await.unwrap().is_none());
}

#[tokio::test]
async fn kubectl_runs_inside_the_network() {
    let cluster = control_plane().await.unwrap().own().unwrap();
    let text = cluster.output("kubectl", &["version", "--output=json"]).await.unwrap();
    let versions: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(versions["serverVersion"]["gitVersion"], KUBERNETES_VERSION);
    assert_eq!(versions["clientVersion"]["gitVersion"], KUBERNETES_VERSION);
}

#[tokio::test]
async fn code_that_runs_inside_reaches_the_node_address() {
    let cluster = control_plane().await.unwrap().own().unwrap().clone();
    let inside = cluster.inside().unwrap();
    let version = inside.run(async move { cluster.inner_client().await.unwrap().apiserver_version().await });
    assert_eq!(version.await.unwrap().unwrap().git_version, KUBERNETES_VERSION);
}

#[tokio::test]
async fn failed_wait_shows_what_it_waited_for_and_the_objects() {
    let namespace = control_plane().await.unwrap().namespace().await.unwrap();
    let pods: Api<Pod> = namespace.api();
    let pod = serde_json::from_value(fixtures::pod("lonely", "escadre.dev/pause:1")).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let error = namespace
        .await_condition("the lonely pod to run", Duration::from_secs(1), async || {
            let pod = pods.get("lonely").await?;
            Ok(pod
                .status
                .filter(|status| status.phase.as_deref() == Some("Running"))
                .map(drop))
        })
        .await
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("waited 1 s for the lonely pod to run"), "{text}");
    assert!(text.contains("Pod lonely:"), "{text}");
}
