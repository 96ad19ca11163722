//! Random operations over many objects while the API misbehaves and the operator is killed now and then. The invariants
//! are checked throughout; at the end the world settles and stays still.
//!
//! Short here; `make soak-operator` sets the variables for the long form.

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use anyhow::Result;
use escadre_e2e::faults::{Dice, bad_weather};
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::operator::Operator;
use escadre_e2e::stage::Stage;
use escadre_e2e::world::{World, condition, versions, wanted};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

/// Most pods of one object.
const MOST: usize = 4;
/// And how many more there may be while a new revision takes over.
const SURGE: usize = 1;
/// How long the garbage collector may take with children of an object that is gone.
const COLLECTED: Duration = Duration::from_mins(1);
/// How often the invariants are checked.
const CHECK: Duration = Duration::from_millis(500);
/// After so many operations the world must come to rest once.
const CHAPTER: usize = 250;
const QUIET: Duration = Duration::from_secs(5);

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number"))
    })
}

/// What must hold at any time.
#[derive(Default)]
struct Watchman {
    /// By UID.
    observed: BTreeMap<String, i64>,
    orphans: BTreeMap<String, Instant>,
}

impl Watchman {
    fn check(&mut self, world: &World) -> Result<()> {
        for (name, object) in &world.deployments {
            let generation = object.metadata.generation.unwrap_or_default();
            let observed = object
                .status
                .as_ref()
                .and_then(|status| status.observed_generation)
                .unwrap_or_default();
            let last = self.observed.entry(object.uid().unwrap_or_default()).or_default();
            anyhow::ensure!(
                observed <= generation,
                "{name}: observed generation {observed} of {generation}"
            );
            anyhow::ensure!(
                observed >= *last,
                "{name}: observed generation fell from {last} to {observed}"
            );
            *last = observed;
            let living = world.living(name).len();
            anyhow::ensure!(
                living <= MOST + SURGE,
                "{name} has {living} pods, and never wanted more than {MOST} and {SURGE} in a rollout"
            );
            if name.starts_with("liar") && wanted(object) > 0 {
                let ready = condition(object, "Ready");
                // A status of an older generation may speak of no pods at all.
                let is_true = ready.is_some_and(|(status, _, of)| status == "True" && of == object.metadata.generation);
                anyhow::ensure!(!is_true, "{name} is ready, and its pods serve something else");
            }
        }
        let orphans = world.orphans();
        self.orphans.retain(|orphan, _| orphans.contains(orphan));
        for orphan in orphans {
            let since = *self.orphans.entry(orphan.clone()).or_insert_with(Instant::now);
            anyhow::ensure!(
                since.elapsed() < COLLECTED,
                "{orphan} for {} s",
                since.elapsed().as_secs()
            );
        }
        Ok(())
    }
}

/// One random operation; what was done, in words.
async fn operate(stage: &Stage, world: &World, dice: &mut Dice, objects: usize) -> Result<String> {
    let number = dice.below(objects);
    // Every eighth never serves what it should.
    let name = if number % 8 == 7 {
        format!("liar-{number}")
    } else {
        format!("object-{number}")
    };
    let replicas = dice.below(MOST + 1);
    if !world.deployments.contains_key(&name) {
        let replicas = i64::try_from(replicas)?;
        stage.create(Deployment::named(&name).replicas(replicas)).await?;
        return Ok(format!("create {name} with {replicas}"));
    }
    let served = format!("name-{}", dice.below(3));
    match dice.below(10) {
        0..=3 => {
            stage.edit(&name, json!({"replicas": replicas})).await?;
            Ok(format!("scale {name} to {replicas}"))
        }
        4 | 5 => {
            stage.edit(&name, json!({"model": {"servedName": served}})).await?;
            Ok(format!("edit {name}"))
        }
        6 => {
            let suspend = dice.below(3) == 0;
            stage.edit(&name, json!({"suspend": suspend})).await?;
            Ok(format!("suspend {name}: {suspend}"))
        }
        7 => {
            stage.delete(&name).await?;
            Ok(format!("delete {name}"))
        }
        _ => {
            let living = world.living(&name);
            let Some(pod) = living.get(dice.below(living.len().max(1))) else {
                return Ok("nothing".to_owned());
            };
            let pods = stage.namespace().api::<Pod>();
            pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
            Ok(format!("kill {}", pod.name_any()))
        }
    }
}

/// The world may be older than the operation: an object or pod that is gone, or is there already, is no failure.
fn is_race(error: &anyhow::Error) -> bool {
    let answer = error.chain().find_map(|cause| cause.downcast_ref::<kube::Error>());
    matches!(answer, Some(kube::Error::Api(status)) if matches!(status.code, 404 | 409))
}

struct Soak {
    stage: Stage,
    operator: Operator,
    watchman: Watchman,
    dice: Dice,
    objects: usize,
    done: Vec<String>,
}

impl Soak {
    async fn step(&mut self, number: usize, world: &mut World, looked: &mut Instant) -> Result<()> {
        match operate(&self.stage, world, &mut self.dice, self.objects).await {
            Ok(what) => self.done.push(what),
            Err(error) if is_race(&error) => {}
            Err(error) => return Err(error),
        }
        if self.dice.below(100) == 0 {
            self.stage.proxy.drop_watches();
        }
        if self.dice.below(150) == 0 {
            let next = self.stage.operator()?;
            std::mem::replace(&mut self.operator, next).kill();
            self.done.push("kill the operator".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(self.dice.number() % 60)).await;
        if looked.elapsed() >= CHECK {
            *world = self.stage.look().await?;
            *looked = Instant::now();
            self.watchman.check(world)?;
            let spec_writes: u64 = self
                .stage
                .proxy
                .counts()
                .iter()
                .filter(|((verb, on), _)| verb.is_write() && on == "llmdeployments.escadre.dev")
                .map(|(_, count)| count)
                .sum();
            anyhow::ensure!(spec_writes == 0, "the operator wrote to {spec_writes} specs");
            anyhow::ensure!(self.operator.is_alive(), "the operator ended");
        }
        if number.is_multiple_of(CHAPTER) {
            eprintln!(
                "{number} operations, {} faults, {} writes",
                self.stage.proxy.faults(),
                self.stage.proxy.written().len()
            );
            *world = self.rest().await?;
        }
        Ok(())
    }

    /// All but the liars come to what they should be, also in bad weather.
    async fn rest(&mut self) -> Result<World> {
        let stage = &self.stage;
        let watchman = &mut self.watchman;
        stage
            .namespace()
            .await_condition("the world to settle", Duration::from_mins(3), async || {
                let world = stage.look().await?;
                watchman.check(&world)?;
                let open: Vec<String> = world.unsettled().into_iter().filter(|text| !is_of_liar(text)).collect();
                anyhow::ensure!(open.is_empty(), "{}", open.join("; "));
                Ok(Some(world))
            })
            .await
    }
}

/// A liar's status never says that it is ready. A revision of it that replaces another never shows that it serves, so
/// that the pods of the others stay, which may be serving. Everything else about it must be right.
fn is_of_liar(text: &str) -> bool {
    const OPEN: [&str; 5] = [
        ": Ready is",
        ": the status counts",
        " pods, and wants ",
        " has pods of several revisions",
        " has two pods in one slot",
    ];
    text.starts_with("liar") && OPEN.iter().any(|open| text.contains(open))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_in_bad_weather_keep_the_invariants() {
    let seed = variable("ESCADRE_SOAK_SEED", 20_261_124);
    let operations = usize::try_from(variable("ESCADRE_SOAK_OPERATIONS", 300)).unwrap();
    let objects = usize::try_from(variable("ESCADRE_SOAK_OBJECTS", 16)).unwrap();
    let idle = Duration::from_secs(variable("ESCADRE_SOAK_IDLE_SECONDS", 10));
    eprintln!("seed {seed}, {operations} operations over {objects} objects");
    let stage = Stage::shared(seed).await.unwrap();
    let liars: Vec<String> = (7..objects).step_by(8).map(|number| format!("liar-{number}")).collect();
    let answers: Vec<(&str, &str)> = liars.iter().map(|name| (name.as_str(), "wrong-digest")).collect();
    stage.answer(&answers).await.unwrap();
    stage.proxy.set_rules(bad_weather(0.04));
    let mut soak = Soak {
        operator: stage.operator().unwrap(),
        stage,
        watchman: Watchman::default(),
        dice: Dice::new(seed),
        objects,
        done: Vec::new(),
    };
    let mut world = soak.stage.look().await.unwrap();
    let mut looked = Instant::now();
    for number in 1..=operations {
        if let Err(error) = soak.step(number, &mut world, &mut looked).await {
            let last = &soak.done[soak.done.len().saturating_sub(20)..];
            panic!(
                "seed {seed}, operation {number}: {error:#}\nlast operations:\n  {}",
                last.join("\n  ")
            );
        }
    }
    soak.stage.proxy.set_rules(Vec::new());
    soak.rest().await.unwrap();
    soak.stage
        .proxy
        .await_quiet(QUIET, Duration::from_mins(2))
        .await
        .unwrap();
    let before = versions(&soak.stage.look().await.unwrap());
    soak.stage.proxy.forget();
    tokio::time::sleep(idle).await;
    let written: Vec<String> = soak
        .stage
        .proxy
        .written()
        .iter()
        .map(|one| one.call.to_string())
        .collect();
    assert_eq!(
        written,
        Vec::<String>::new(),
        "written in {} s of an idle world",
        idle.as_secs()
    );
    assert_eq!(versions(&soak.stage.look().await.unwrap()), before);
    eprintln!("seed {seed}: {operations} operations kept the invariants");
}
