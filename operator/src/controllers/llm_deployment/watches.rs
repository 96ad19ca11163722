//! Every watch of the controller. Each feeds its cache and the queue as it goes, starts again by itself after a short
//! pause, and never ends: an API server that was away is heard again within seconds.

use std::sync::Arc;
use std::time::Duration;

use escadre_crds::{LlmDeployment, ModelPolicy, names};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::runtime::reflector::store::Writer;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::{Scope, dependencies};
use crate::context::Context;
use crate::queue::Purpose;
use crate::world::World;
use crate::world::cache::{Cache, Key, place};
use crate::world::trim::{trim, trim_pod};

/// The pause after the first failure of a watch in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: how long the operator may stay blind after the API server came back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The deployments that the watch has told.
pub(super) type Deployments = Store<DeserializeGuard<LlmDeployment>>;

/// Starts every watch. They run until the set is dropped.
pub(super) fn start(ctx: &Arc<Context>, scope: &Scope, writer: Writer<DeserializeGuard<LlmDeployment>>) -> JoinSet<()> {
    let namespace = scope.namespace.as_deref();
    let known = writer.as_reader();
    let mut watches = JoinSet::new();
    watches.spawn(deployments(Arc::clone(ctx), scoped(ctx, namespace), writer));
    watches.spawn(pods(Arc::clone(ctx), scoped(ctx, namespace)));
    watches.spawn(children(Arc::clone(ctx), scoped(ctx, namespace), |world| {
        &world.services
    }));
    watches.spawn(children(Arc::clone(ctx), scoped(ctx, namespace), |world| {
        &world.revisions
    }));
    watches.spawn(children(Arc::clone(ctx), scoped(ctx, namespace), |world| {
        &world.budgets
    }));
    watches.spawn(children(Arc::clone(ctx), scoped(ctx, namespace), |world| {
        &world.snapshots
    }));
    if scope.ignores_policies {
        ctx.world.policies.has_none();
    } else {
        watches.spawn(policies(Arc::clone(ctx), known.clone()));
        watches.spawn(namespaces(Arc::clone(ctx), known.clone()));
    }
    watches.spawn(config_maps(Arc::clone(ctx), scoped(ctx, namespace), known));
    watches
}

/// The watch of the deployments. It feeds the store from which passes take them.
async fn deployments(
    ctx: Arc<Context>,
    api: Api<DeserializeGuard<LlmDeployment>>,
    writer: Writer<DeserializeGuard<LlmDeployment>>,
) {
    let known = writer.as_reader();
    let mut before = Vec::new();
    let events = watcher(api, watcher::Config::default())
        .backoff(Pause::default())
        .modify(|object: &mut DeserializeGuard<LlmDeployment>| trim(object))
        .reflect(writer);
    follow(events, |event| match event {
        Event::Apply(object) => hear(&ctx, &object),
        Event::Delete(object) => ctx.queue.add(place(&object), Purpose::Progress),
        Event::Init => before = known.state().iter().map(|object| place(&**object)).collect(),
        Event::InitApply(_) => {}
        // Only now does the store show what was listed.
        Event::InitDone => {
            wake(&ctx, std::mem::take(&mut before));
            for object in known.state() {
                hear(&ctx, &object);
            }
        }
    })
    .await;
}

fn hear(ctx: &Context, object: &DeserializeGuard<LlmDeployment>) {
    let purpose = match &object.0 {
        Ok(object) if is_edit(object) => Purpose::Edit,
        Ok(_) | Err(_) => Purpose::Progress,
    };
    ctx.queue.add(place(object), purpose);
}

/// An edit is a spec of which status says nothing yet.
fn is_edit(object: &LlmDeployment) -> bool {
    let observed = object.status.as_ref().and_then(|status| status.observed_generation);
    observed != object.metadata.generation
}

/// The watch of pods. It feeds the cache and the poller.
async fn pods(ctx: Arc<Context>, api: Api<Pod>) {
    let events = watcher(api, labelled()).backoff(Pause::default()).modify(trim_pod);
    follow(events, |event| {
        ctx.world.poller.handle(&event);
        wake(&ctx, ctx.world.pods.handle(&event));
    })
    .await;
}

/// The watch of another kind of children. It feeds its cache.
async fn children<K>(ctx: Arc<Context>, api: Api<K>, cache: fn(&World) -> &Cache<K>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api, labelled()).backoff(Pause::default()).modify(trim);
    follow(events, |event| wake(&ctx, cache(&ctx.world).handle(&event))).await;
}

/// The watch of policies. A cluster whose definitions are older does not have the kind, and so no policies.
async fn policies(ctx: Arc<Context>, known: Deployments) {
    let events = watcher(Api::<ModelPolicy>::all(ctx.client.clone()), watcher::Config::default());
    let events = events.backoff(Pause::default()).inspect_err(|error| {
        if let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error
            && status.code == 404
        {
            ctx.world.policies.policies.has_none();
        }
    });
    follow(events, |event| {
        let is_told = matches!(event, Event::Apply(_) | Event::Delete(_) | Event::InitDone);
        ctx.world.policies.policies.handle(event, Arc::new);
        if is_told {
            wake(&ctx, known.state().iter().map(|object| place(&**object)).collect());
        }
    })
    .await;
}

/// The watch of namespaces, without anything but their labels: they decide which policies apply.
async fn namespaces(ctx: Arc<Context>, known: Deployments) {
    let api = Api::<PartialObjectMeta<Namespace>>::all(ctx.client.clone());
    let events = watcher(api, watcher::Config::default()).backoff(Pause::default());
    follow(events, |event| {
        if let Some(namespace) = ctx
            .world
            .policies
            .namespaces
            .handle(event, crate::world::policies::labels)
        {
            let inside = known.state().into_iter().map(|object| place(&*object));
            wake(&ctx, inside.filter(|(of, _)| *of == namespace).collect());
        }
    })
    .await;
}

/// The watch of every ConfigMap, without contents and without a cache: it wakes those that name one.
async fn config_maps(ctx: Arc<Context>, api: Api<PartialObjectMeta<ConfigMap>>, known: Deployments) {
    let events = watcher(api, watcher::Config::default())
        .backoff(Pause::default())
        .touched_objects();
    follow(events, |config_map| {
        wake(&ctx, dependencies::users_of_config_map(&known, &config_map));
    })
    .await;
}

/// Objects with our label, whoever made them: a foreign pod that carries it must be seen.
fn labelled() -> watcher::Config {
    watcher::Config::default().labels(names::LABEL_DEPLOYMENT)
}

fn scoped<K>(ctx: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(ctx.client.clone(), namespace),
        None => Api::all(ctx.client.clone()),
    }
}

fn wake(ctx: &Context, deployments: Vec<Key>) {
    for deployment in deployments {
        ctx.queue.add(deployment, Purpose::Progress);
    }
}

/// Hands on what a watch tells; its failures are logged.
async fn follow<T>(told: impl Stream<Item = Result<T, watcher::Error>>, mut handle: impl FnMut(T)) {
    let mut told = std::pin::pin!(told);
    while let Some(told) = told.next().await {
        match told {
            Ok(told) => handle(told),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "watch failed, it starts again"
                );
            }
        }
    }
}

/// The pauses of one watch: each failure in a row doubles the next one, up to a limit.
#[derive(Clone, Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_again() {
        let mut pause = Pause::default();
        assert_eq!(pause.next(), Some(FIRST_PAUSE));
        assert_eq!(pause.next(), Some(FIRST_PAUSE * 2));
        assert_eq!(pause.nth(20), Some(LONGEST_PAUSE));
        pause.reset();
        assert_eq!(pause.next(), Some(FIRST_PAUSE));
    }
}
