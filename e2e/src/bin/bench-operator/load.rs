//! What is put into clusters.

use std::time::Duration;

use anyhow::{Context as _, Result};
use escadre_crds::LlmDeployment;
use escadre_e2e::fixtures::Deployment;
use futures::TryStreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment as PlainDeployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Requests that wait at once; what `kubectl apply` of one large file does not reach.
const AT_ONCE: usize = 32;

/// A fleet and the yardstick are spread over so many namespaces: the controller manager looks at every Service of a
/// namespace for each of its pods.
const NAMESPACES: usize = 50;

/// The namespace of one deployment of a fleet.
pub(crate) fn namespace_of(fleet: &str, number: usize) -> String {
    format!("{fleet}-{:02}", number % NAMESPACES)
}

/// Makes the namespaces of a fleet.
pub(crate) async fn namespaces(client: &Client, fleet: &str) -> Result<()> {
    let names: Vec<String> = (0..NAMESPACES).map(|number| namespace_of(fleet, number)).collect();
    let made = names.iter().map(|name| namespace(client, name));
    futures::future::try_join_all(made).await.map(drop)
}

/// The name of one deployment; none is the beginning of another.
pub(crate) fn name(number: usize) -> String {
    format!("d-{number:05}")
}

/// Makes a namespace in which pods may be made.
pub(crate) async fn namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .context("could not make a namespace")?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    for _ in 0..600 {
        if accounts.get_opt("default").await?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("the namespace {name} got no account within a minute")
}

/// Creates objects, each in its namespace.
async fn create<K>(client: &Client, objects: impl Iterator<Item = (String, Value)>) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    K::DynamicType: Default,
{
    let creations = objects.map(|(namespace, object)| {
        Ok::<_, anyhow::Error>(async move {
            let api: Api<K> = Api::namespaced(client.clone(), &namespace);
            let object: K = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &object)
                .await
                .context("could not create")?;
            Ok(())
        })
    });
    futures::stream::iter(creations)
        .try_buffer_unordered(AT_ONCE)
        .try_for_each(async |()| Ok(()))
        .await
}

/// `LlmDeployment`s with these numbers.
pub(crate) async fn llm_deployments(
    client: &Client,
    fleet: &str,
    numbers: impl Iterator<Item = usize>,
    replicas: i64,
) -> Result<()> {
    let objects = numbers.map(|number| {
        let deployment = Deployment::named(&name(number)).replicas(replicas);
        (namespace_of(fleet, number), deployment.into_value())
    });
    create::<LlmDeployment>(client, objects).await
}

/// Plain Deployments of two pods each.
pub(crate) async fn plain(client: &Client, fleet: &str, count: usize) -> Result<()> {
    let objects = (0..count).map(|number| {
        let labels = json!({"app": name(number), "bench": "plain"});
        let deployment = json!({
            "metadata": {"name": name(number)},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "main", "image": "escadre.dev/pause:1"}]},
                },
            },
        });
        (namespace_of(fleet, number), deployment)
    });
    create::<PlainDeployment>(client, objects).await
}

/// Secrets and pods that are none of our business. The pods are never scheduled.
pub(crate) async fn unrelated(client: &Client, namespace: &str, secrets: usize, pods: usize) -> Result<()> {
    let secret = |number: usize| {
        json!({
            "metadata": {"name": format!("secret-{number}"), "labels": {"app": "other"}},
            "stringData": {"key": "x".repeat(1024)},
        })
    };
    create::<Secret>(client, (0..secrets).map(|one| (namespace.to_owned(), secret(one)))).await?;
    let pod = |number: usize| {
        json!({
            "metadata": {"name": format!("pod-{number}"), "labels": {"app": "other"}},
            "spec": {
                "schedulerName": "nobody",
                "containers": [{"name": "main", "image": "escadre.dev/pause:1"}],
            },
        })
    };
    create::<Pod>(client, (0..pods).map(|one| (namespace.to_owned(), pod(one)))).await
}
