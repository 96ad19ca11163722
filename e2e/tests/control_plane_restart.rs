//! Restarts: of the operator with many objects, of the API server, of etcd; and objects from before a schema was strict.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use escadre_crds::LlmDeployment;
use escadre_e2e::cluster::Component;
use escadre_e2e::escadre;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::stage::Stage;
use escadre_e2e::testing::OwnCluster;
use escadre_e2e::wait::llm_deployments;
use escadre_e2e::world::versions;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, CustomResourceExt as _};
use serde_json::json;

const SEED: u64 = 20_261_124;
const SOON: Duration = Duration::from_mins(1);
const QUIET: Duration = Duration::from_secs(5);
/// Objects over whose heads the operator restarts.
const OBJECTS: usize = 200;

async fn own(label: &str) -> OwnCluster {
    OwnCluster::start(label, &["--control-plane-only", "--kwok-nodes", "3"])
        .await
        .unwrap()
}

#[tokio::test]
async fn restarted_operator_changes_nothing() {
    let stage = Stage::shared(SEED).await.unwrap();
    let operator = stage.operator().unwrap();
    futures::stream::iter(0..OBJECTS)
        .map(|number| Ok(stage.create(Deployment::named(&format!("many-{number}")))))
        .try_buffer_unordered(8)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    let before = versions(&stage.settle_quietly(QUIET).await.unwrap());
    operator.kill();
    stage.proxy.forget();
    let operator = stage.operator().unwrap();
    stage
        .namespace()
        .await_condition("the new operator to watch", SOON, async || {
            let watched = stage
                .proxy
                .counts()
                .into_keys()
                .any(|(verb, on)| verb == escadre_e2e::faults::Verb::Watch && on == "llmdeployments.escadre.dev");
            Ok(watched.then_some(()))
        })
        .await
        .unwrap();
    // Time for a pass over every object, and for pods to be asked.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let written: BTreeMap<String, u16> = stage
        .proxy
        .written()
        .iter()
        .map(|one| (one.call.to_string(), one.code))
        .collect();
    assert_eq!(written, BTreeMap::new());
    assert_eq!(versions(&stage.look().await.unwrap()), before);
    // It is awake.
    stage.edit("many-7", json!({"replicas": 2})).await.unwrap();
    stage.settle().await.unwrap();
    operator.stop();
}

#[tokio::test]
async fn restarted_api_server_and_etcd_converge() {
    let cluster = own("restart").await;
    let stage = Stage::on(&cluster, SEED).await.unwrap();
    let operator = stage.operator().unwrap();
    stage.create(Deployment::named("before").replicas(2)).await.unwrap();
    let pods = versions(&stage.settle().await.unwrap());
    for (component, replicas) in [
        (Component::KubeApiserver, 3),
        (Component::Etcd, 4),
        (Component::KubeApiserver, 1),
    ] {
        cluster.cluster().restart_component(component).unwrap();
        stage
            .namespace()
            .await_condition("the API to answer again", SOON, async || {
                let edited = stage.edit("before", json!({"replicas": replicas})).await;
                Ok(edited.ok())
            })
            .await
            .unwrap();
        let world = stage.settle().await.unwrap();
        assert_eq!(world.living("before").len(), replicas);
    }
    assert!(operator.is_alive());
    let after = versions(&stage.look().await.unwrap());
    let kept = after
        .keys()
        .filter(|name| name.starts_with("pod/"))
        .all(|name| pods.contains_key(name));
    assert!(kept, "the oldest pod was not kept: {pods:?}, {after:?}");
}

#[tokio::test]
async fn broken_stored_object_is_an_error_on_that_object_alone() {
    let cluster = own("broken").await;
    let stage = Stage::on(&cluster, SEED).await.unwrap();
    let operator = stage.operator().unwrap();
    stage.create(Deployment::named("before")).await.unwrap();
    stage.settle().await.unwrap();

    // As an older version with a looser schema would have stored it.
    let client = stage.namespace().client();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut definition = LlmDeployment::crd();
    let loose = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    definition.spec.versions[0].schema = serde_json::from_value(loose).unwrap();
    let parameters = PatchParams::apply("scenario").force();
    let name = LlmDeployment::crd_name();
    definitions
        .patch(name, &parameters, &Patch::Apply(&definition))
        .await
        .unwrap();
    let dynamic: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), stage.namespace().name(), &llm_deployments());
    let broken: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "escadre.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "broken"},
        // The scale subresource looks at `replicas` under any schema.
        "spec": {"replicas": 1, "model": ["a", "list"]},
    }))
    .unwrap();
    stage
        .namespace()
        .await_condition("the loose schema to hold", SOON, async || {
            Ok(Some(dynamic.create(&PostParams::default(), &broken).await?))
        })
        .await
        .unwrap();
    escadre::install_resource(stage.cluster()).await.unwrap();

    // Others go on, with the operator that saw it come and with one that finds it.
    for (operator, name) in [(operator, "beside"), (stage.operator().unwrap(), "after")] {
        stage
            .namespace()
            .await_condition("the strict schema to hold", SOON, async || {
                Ok(Some(stage.create(Deployment::named(name).replicas(2)).await?))
            })
            .await
            .unwrap();
        stage
            .namespace()
            .await_condition(
                &format!("{name} to be ready beside a broken object"),
                SOON,
                async || {
                    let object = stage.deployments().get(name).await?;
                    let ready = object.status.filter(|status| status.ready_replicas == 2);
                    Ok(ready)
                },
            )
            .await
            .unwrap();
        assert!(operator.is_alive());
        assert!(
            operator.log(1000).contains("broken"),
            "nothing is said about the broken object"
        );
        operator.stop();
    }
}
