//! Policies for the namespace of one test: a policy belongs to no namespace, and other tests share the cluster.

use anyhow::{Context as _, Result};
use escadre_crds::ModelPolicy;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::testing::TestNamespace;

/// A policy for one namespace.
#[derive(Debug)]
pub struct TestPolicy {
    api: Api<ModelPolicy>,
    /// Its name, which conditions and pods repeat.
    pub name: String,
}

impl TestPolicy {
    /// Makes a policy with these fields of a spec.
    pub async fn create(namespace: &TestNamespace, name: &str, spec: &Value) -> Result<Self> {
        let api: Api<ModelPolicy> = Api::all(namespace.client().clone());
        let name = format!("{name}-{}", namespace.name());
        let mut policy = json!({
            "apiVersion": "escadre.dev/v1alpha1", "kind": "ModelPolicy", "metadata": {"name": name},
            "spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}}},
        });
        for (key, value) in spec.as_object().context("a spec is an object")? {
            policy["spec"][key] = value.clone();
        }
        let policy: ModelPolicy = serde_json::from_value(policy).context("the policy does not parse")?;
        let created = api.create(&PostParams::default(), &policy).await;
        created.context("could not make the policy")?;
        Ok(Self { api, name })
    }

    /// Sets fields of its spec.
    pub async fn edit(&self, spec: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        let edited = self.api.patch(&self.name, &PatchParams::default(), &patch).await;
        edited.map(drop).context("could not edit the policy")
    }

    /// Deletes it.
    pub async fn delete(self) -> Result<()> {
        let deleted = self.api.delete(&self.name, &DeleteParams::default()).await;
        deleted.map(drop).context("could not delete the policy")
    }
}
