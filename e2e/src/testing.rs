//! What scenarios start from: one cluster for a test binary, one namespace for a test.
//!
//! [`control_plane`] and [`cluster`] start a cluster at the first call and share it among the tests of a binary. A
//! guard process holds it and stops it when the test binary has ended, also after a SIGKILL. With
//! `ESCADRE_TEST_CONTEXT` set to the name of a kubeconfig context, [`cluster`] uses that cluster instead; a cluster is
//! never used without being named.

use std::env;
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use escadre_crds::LlmDeployment;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::cluster::{Cache, Cluster, config_from, own_program};
use crate::fixtures::Deployment;
use crate::wait::await_condition;

/// Names the kubeconfig context of a cluster on which the tests shall run.
pub const CONTEXT_VARIABLE: &str = "ESCADRE_TEST_CONTEXT";

/// A cluster that tests run on.
#[derive(Debug)]
pub enum TestCluster {
    /// One that this test binary started.
    Own(OwnCluster),
    /// One that a person named.
    Named {
        /// The context in the person's kubeconfig.
        context: String,
    },
}

impl TestCluster {
    /// A client with the rights of the cluster's administrator. Every test makes its own: it belongs to the test's runtime.
    pub async fn client(&self) -> Result<Client> {
        self.source().client().await
    }

    fn source(&self) -> ClientSource {
        match self {
            Self::Own(own) => own.source(),
            Self::Named { context } => ClientSource::Context(context.clone()),
        }
    }

    /// The cluster of the test bed; an error on a cluster that a person named.
    pub fn own(&self) -> Result<&Cluster> {
        match self {
            Self::Own(own) => Ok(&own.cluster),
            Self::Named { context } => {
                bail!("this needs a cluster of the test bed, but {CONTEXT_VARIABLE} names {context}")
            }
        }
    }

    /// A namespace of its own for one test.
    pub async fn namespace(&self) -> Result<TestNamespace> {
        TestNamespace::create(self.source()).await
    }
}

/// From where clients are made: a client cannot leave the runtime of the test that made it.
#[derive(Debug, Clone)]
enum ClientSource {
    /// A kubeconfig of the test bed.
    File(PathBuf),
    /// A context of the person's usual kubeconfig.
    Context(String),
}

impl ClientSource {
    async fn client(&self) -> Result<Client> {
        let config = match self {
            Self::File(file) => config_from(file).await?,
            Self::Context(context) => {
                let options = KubeConfigOptions {
                    context: Some(context.clone()),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options)
                    .await
                    .with_context(|| format!("the kubeconfig has no usable context {context}"))?
            }
        };
        Client::try_from(config).context("could not make a Kubernetes client")
    }
}

/// A cluster that lives as long as this process.
#[derive(Debug)]
pub struct OwnCluster {
    cluster: Cluster,
    /// Holds the pipe whose end tells the guard that we are gone.
    guard: Child,
}

impl OwnCluster {
    /// Starts a cluster with further arguments of `escadre-testbed up`. `label` tells it apart in `status`.
    pub async fn start(label: &str, arguments: &[&str]) -> Result<Self> {
        let name = format!("test-{label}-{}", std::process::id());
        let mut command = Command::new(own_program()?);
        command.arg("guard").arg("--name").arg(&name).args(arguments);
        let (guard, cluster_name) = (spawn_guard(command), name);
        let guard = tokio::task::spawn_blocking(move || guard.and_then(wait_until_up))
            .await
            .context("starting a cluster panicked")??;
        Ok(Self {
            cluster: Cluster::attach(&Cache::from_environment()?, &cluster_name)?,
            guard,
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A namespace of its own for one test.
    pub async fn namespace(&self) -> Result<TestNamespace> {
        TestNamespace::create(self.source()).await
    }

    fn source(&self) -> ClientSource {
        ClientSource::File(self.cluster.kubeconfig())
    }

    /// Stops it now, and waits until nothing of it is left.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.guard.stdin.take());
        tokio::task::spawn_blocking(move || self.guard.wait())
            .await
            .context("waiting for the guard panicked")?
            .context("could not wait for the guard")?;
        Ok(())
    }

    /// The process that holds it.
    pub fn guard_process(&self) -> u32 {
        self.guard.id()
    }
}

fn spawn_guard(mut command: Command) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // An interrupt from the terminal must not reach the one who cleans up.
        .process_group(0)
        .spawn()
        .context("could not start escadre-testbed")
}

fn wait_until_up(mut guard: Child) -> Result<Child> {
    let output = guard.stdout.take().context("the guard has no output")?;
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .context("could not hear from the guard")?;
    if line.trim() != "up" {
        let status = guard.wait().context("could not wait for the guard")?;
        bail!("the cluster did not start ({status}); its messages are above");
    }
    Ok(guard)
}

/// A control plane without a node, shared by the tests of this binary. Pods stay pending.
pub async fn control_plane() -> Result<&'static TestCluster> {
    static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
    SHARED.get_or_try_init(|| own("api", &["--control-plane-only"])).await
}

/// A control plane with 20 fake nodes of 8 GPUs each, shared by the tests of this binary.
pub async fn fake_nodes() -> Result<&'static TestCluster> {
    static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
    SHARED
        .get_or_try_init(|| own("kwok", &["--control-plane-only", "--kwok-nodes", "20"]))
        .await
}

/// A cluster whose pods really run, shared by the tests of this binary; or the one that the person named.
pub async fn cluster() -> Result<&'static TestCluster> {
    static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
    SHARED
        .get_or_try_init(async || match env::var(CONTEXT_VARIABLE) {
            Ok(context) if !context.is_empty() => Ok(TestCluster::Named { context }),
            _ => own("node", &[]).await,
        })
        .await
}

/// A cluster whose pods really run, with three fake nodes beside the real one: losing a node is no loss of all. Shared
/// by the tests of this binary.
pub async fn cluster_beside_fake_nodes() -> Result<&'static TestCluster> {
    static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
    SHARED.get_or_try_init(|| own("mixed", &["--kwok-nodes", "3"])).await
}

async fn own(label: &str, arguments: &[&str]) -> Result<TestCluster> {
    OwnCluster::start(label, arguments).await.map(TestCluster::Own)
}

/// A namespace for one test; deleted when it is dropped.
pub struct TestNamespace {
    source: ClientSource,
    client: Client,
    name: String,
}

impl fmt::Debug for TestNamespace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TestNamespace")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl TestNamespace {
    /// Makes a namespace with a unique name, and waits until pods may be made in it.
    async fn create(source: ClientSource) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let client = source.client().await?;
        let name = format!("t-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let labels = json!({"escadre.dev/test": "true"});
        let namespace: Namespace = serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
        .context("a namespace is not a Namespace")?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .context("could not make a namespace")?;
        let created = Self { source, client, name };
        let accounts: Api<ServiceAccount> = created.api();
        created
            .await_condition("the namespace's account", Duration::from_secs(30), async || {
                Ok(accounts.get_opt("default").await?)
            })
            .await?;
        Ok(created)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client with which it was made.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The objects of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a deployment.
    pub async fn create_deployment(&self, deployment: Deployment) -> Result<LlmDeployment> {
        let typed: LlmDeployment = serde_json::from_value(deployment.into_value())?;
        let created = self.api().create(&PostParams::default(), &typed).await;
        created.context("could not create the deployment")
    }

    /// Edits fields of a deployment's spec.
    pub async fn edit_deployment(&self, name: &str, spec: Value) -> Result<()> {
        let api: Api<LlmDeployment> = self.api();
        let patch = Patch::Merge(json!({"spec": spec}));
        let patched = api.patch(name, &PatchParams::default(), &patch).await;
        patched.map(drop).context("could not edit the deployment")
    }

    /// Deletes a deployment.
    pub async fn delete_deployment(&self, name: &str) -> Result<()> {
        let api: Api<LlmDeployment> = self.api();
        let deleted = api.delete(name, &DeleteParams::default()).await;
        deleted.map(drop).context("could not delete the deployment")
    }

    /// [`await_condition`] whose dump is of this namespace.
    pub async fn await_condition<T>(
        &self,
        what: &str,
        deadline: Duration,
        check: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        await_condition(&self.client, &self.name, what, deadline, check).await
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let (source, name) = (self.source.clone(), self.name.clone());
        // On a thread and a runtime of its own: the test's runtime ends with the test.
        let deletion = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let deletion = async {
                    let namespaces: Api<Namespace> = Api::all(source.client().await?);
                    namespaces.delete(&name, &DeleteParams::default()).await?;
                    anyhow::Ok(())
                };
                tokio::time::timeout(Duration::from_secs(10), deletion).await?
            })
        });
        match deletion.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("could not delete the namespace {}: {error:#}", self.name),
            Err(_) => eprintln!("could not delete the namespace {}", self.name),
        }
    }
}

/// The end of every log of a cluster, for a failed test.
pub fn component_logs(cluster: &Cluster, lines: usize) -> String {
    let processes = cluster.processes();
    let mut text = String::new();
    for name in processes.log_names() {
        let log = crate::cluster::tail(&processes.log(&name), lines);
        text.extend(["--- ", &name, "\n", &log, "\n"]);
    }
    text
}
