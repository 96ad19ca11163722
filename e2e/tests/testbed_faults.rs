//! The fault proxy before a real API server: each fault as a real client meets it, and that it executes what it says.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use escadre_e2e::faults::{Fault, FaultProxy, Rule, Side, Verb};
use escadre_e2e::testing::{self, TestNamespace};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::json;

const SEED: u64 = 20_261_124;
const SOON: Duration = Duration::from_secs(20);

/// A proxy, a namespace, and work inside the cluster's network with a client that goes through the proxy.
async fn scene() -> (FaultProxy, TestNamespace) {
    let cluster = testing::control_plane().await.unwrap();
    let proxy = FaultProxy::start(cluster.own().unwrap(), SEED).await.unwrap();
    (proxy, cluster.namespace().await.unwrap())
}

async fn client(proxy: &std::path::Path, token: Option<String>) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(proxy)?;
    if let Some(user) = kubeconfig.auth_infos[0].auth_info.as_mut() {
        user.token = token.map(Into::into);
    }
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

/// Runs `work` with the config maps of the namespace as a client of the proxy sees them.
async fn through<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
    (proxy, namespace): &(FaultProxy, TestNamespace),
    work: impl FnOnce(Api<ConfigMap>) -> F + Send + 'static,
) -> Result<T> {
    let cluster = testing::control_plane().await?.own()?;
    let (kubeconfig, namespace) = (proxy.kubeconfig(), namespace.name().to_owned());
    let inside = cluster.inside()?;
    inside
        .run(async move {
            let client = client(&kubeconfig, None).await?;
            tokio::time::timeout(SOON, work(Api::namespaced(client, &namespace)))
                .await
                .context("the work took too long")?
        })
        .await?
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": "value ".repeat(100)}})).unwrap()
}

async fn create(maps: Api<ConfigMap>) -> Result<ConfigMap> {
    Ok(maps.create(&PostParams::default(), &map("one")).await?)
}

async fn exists(namespace: &TestNamespace) -> bool {
    namespace.api::<ConfigMap>().get_opt("one").await.unwrap().is_some()
}

fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

#[tokio::test]
async fn requests_pass_and_are_counted_by_verb_and_resource() {
    let scene = scene().await;
    through(&scene, async |maps| {
        maps.create(&PostParams::default(), &map("one")).await?;
        maps.list(&ListParams::default()).await?;
        maps.get("one").await?;
        maps.delete("one", &DeleteParams::default()).await?;
        Ok(())
    })
    .await
    .unwrap();
    let counts: Vec<_> = scene
        .0
        .counts()
        .into_iter()
        .map(|((verb, on), count)| format!("{verb} {on}: {count}"))
        .collect();
    assert_eq!(
        counts,
        [
            "get configmaps: 1",
            "list configmaps: 1",
            "create configmaps: 1",
            "delete configmaps: 1"
        ]
    );
    let written: Vec<_> = scene.0.written().iter().map(|one| (one.call.verb, one.code)).collect();
    assert_eq!(written, [(Verb::Create, 201), (Verb::Delete, 200)]);
}

#[tokio::test]
async fn token_of_a_service_account_keeps_its_own_rights() {
    let scene = scene().await;
    let accounts: Api<ServiceAccount> = scene.1.api();
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}})).unwrap();
    let answer = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .unwrap();
    let token = answer.status.unwrap().token;
    let inside = testing::control_plane().await.unwrap().own().unwrap().inside().unwrap();
    let (kubeconfig, namespace) = (scene.0.kubeconfig(), scene.1.name().to_owned());
    let error = inside
        .run(async move {
            let client = client(&kubeconfig, Some(token)).await?;
            create(Api::namespaced(client, &namespace)).await
        })
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(code(&error), Some(403));
    assert!(error.to_string().contains("system:serviceaccount:"), "{error}");
}

#[tokio::test]
async fn refused_writes_are_not_executed() {
    for (fault, wanted) in [(Fault::Conflict, 409), (Fault::ServerError, 500)] {
        let scene = scene().await;
        scene
            .0
            .set_rules(vec![Rule::always(fault).verbs(&[Verb::Create]).on("configmaps")]);
        let error = through(&scene, create).await.unwrap_err();
        assert_eq!(code(&error), Some(wanted));
        assert!(!exists(&scene.1).await);
        assert!(scene.0.written().is_empty());
        assert_eq!(scene.0.faults(), 1);
    }
}

#[tokio::test]
async fn too_many_requests_says_when_to_come_back() {
    let scene = scene().await;
    scene.0.set_rules(vec![Rule::always(Fault::TooManyRequests(7))]);
    let url = format!("{}/api/v1/namespaces/default", scene.0.url());
    let inside = testing::control_plane().await.unwrap().own().unwrap().inside().unwrap();
    let answer = inside
        .run(async move { reqwest::Client::builder().no_proxy().build()?.get(url).send().await })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.headers()["retry-after"], "7");
}

#[tokio::test]
async fn cut_answer_comes_after_the_execution() {
    let scene = scene().await;
    scene
        .0
        .set_rules(vec![Rule::always(Fault::CutAnswer).verbs(&[Verb::Create])]);
    let error = through(&scene, create).await.unwrap_err();
    assert_eq!(code(&error), None, "{error:#}");
    assert!(exists(&scene.1).await);
    assert_eq!(scene.0.written()[0].code, 201);
}

#[tokio::test]
async fn delayed_request_is_executed_later() {
    let scene = scene().await;
    let delay = Duration::from_secs(1);
    scene.0.set_rules(vec![Rule::always(Fault::Delay(delay)).times(1)]);
    let start = Instant::now();
    through(&scene, create).await.unwrap();
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn frozen_world_goes_on_when_it_thaws() {
    let scene = scene().await;
    scene.0.freeze();
    let proxy = &scene.0;
    let work = through(&scene, create);
    let thaw = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(proxy.written().is_empty());
        proxy.thaw();
    };
    let (created, ()) = tokio::join!(work, thaw);
    created.unwrap();
}

#[tokio::test]
async fn stopped_write_is_lost_before_or_executed_after() {
    for (side, executed) in [(Side::Before, false), (Side::After, true)] {
        let scene = scene().await;
        scene.0.stop_at_write(2, side);
        let proxy = &scene.0;
        let work = through(&scene, async |maps| {
            maps.create(&PostParams::default(), &map("zero")).await?;
            create(maps).await
        });
        let resume = async {
            proxy.stopped().await;
            assert!(proxy.is_stopped());
            proxy.resume();
        };
        let (created, ()) = tokio::join!(work, resume);
        created.unwrap_err();
        assert_eq!(exists(&scene.1).await, executed, "{side:?}");
        // The world goes on afterwards.
        through(&scene, async |maps| Ok(maps.get("zero").await?)).await.unwrap();
    }
}

/// Opens a watch, and makes an object once it stands; what the watch then says first.
async fn watched(scene: &(FaultProxy, TestNamespace)) -> Result<Option<WatchEvent<ConfigMap>>> {
    through(scene, async |maps| {
        let version = maps
            .list(&ListParams::default())
            .await?
            .metadata
            .resource_version
            .unwrap_or_default();
        let mut events = maps.watch(&WatchParams::default(), &version).await?.boxed();
        create(maps).await?;
        Ok(events.try_next().await?)
    })
    .await
}

#[tokio::test]
async fn watch_is_passed_on_piece_by_piece() {
    let scene = scene().await;
    match watched(&scene).await.unwrap() {
        Some(WatchEvent::Added(map)) => assert_eq!(map.name_any(), "one"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn watch_can_be_gone_at_once_or_by_its_first_event() {
    let scene = scene().await;
    scene.0.set_rules(vec![Rule::always(Fault::GoneAtOnce)]);
    assert_eq!(code(&watched(&scene).await.unwrap_err()), Some(410));
    scene
        .1
        .api::<ConfigMap>()
        .delete("one", &DeleteParams::default())
        .await
        .ok();
    scene.0.set_rules(vec![Rule::always(Fault::GoneAsEvent)]);
    match watched(&scene).await.unwrap() {
        Some(WatchEvent::Error(status)) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn watches_are_dropped_ended_or_held() {
    let scene = scene().await;
    let proxy = &scene.0;
    // Dropped: a watch that would go on for ever is over.
    let open = through(&scene, async |maps| {
        let mut events = maps.watch(&WatchParams::default(), "0").await?.boxed();
        while events.next().await.is_some_and(|event| event.is_ok()) {}
        Ok(())
    });
    let drop_it = async {
        await_watch(proxy, 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.drop_watches();
    };
    tokio::join!(open, drop_it).0.unwrap();
    // Ended: as the API server does after a while.
    proxy.set_rules(vec![Rule::always(Fault::EndWatch(Duration::from_millis(200)))]);
    let ended = through(&scene, async |maps| {
        let events = maps.watch(&WatchParams::default(), "0").await?;
        Ok(events.try_collect::<Vec<_>>().await.map(drop)?)
    });
    ended.await.unwrap();
    // Held: nothing comes until it is released.
    proxy.set_rules(Vec::new());
    proxy.hold_watches();
    let held = watched(&scene);
    let release = async {
        await_watch(proxy, 3).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let released = Instant::now();
        proxy.release_watches();
        released
    };
    let arrival = async { (held.await, Instant::now()) };
    let ((event, arrived), released) = tokio::join!(arrival, release);
    assert!(event.unwrap().is_some());
    assert!(arrived >= released);
}

async fn await_watch(proxy: &FaultProxy, number: u64) {
    let seen = async {
        while proxy.count(Verb::Watch, "configmaps") < number {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, seen).await.unwrap();
}
