//! The dashboards of the chart on a real Prometheus that scrapes a real model and the operator by the configuration in
//! the guide: every query of every panel has an answer, every variable its values, and every alert can be evaluated.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use escadre_e2e::client::OpenAi;
use escadre_e2e::cluster::{Cache, Cluster, Component, NODE_ADDRESS, ensure_programs};
use escadre_e2e::escadre::source_tree;
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

/// Where Prometheus listens, beside the node's own ports.
const PORT: u16 = 9099;
/// Several scrapes, on a busy machine.
const SCRAPED: Duration = Duration::from_mins(3);
/// What stands for Grafana's `$__rate_interval`: many times the scrape interval.
const RATE_INTERVAL: &str = "1m";
/// The name of the deployment.
const NAME: &str = "watched";

/// A query of a panel, with the variables filled in.
#[derive(Debug, Clone)]
struct Query {
    /// Dashboard and panel.
    panel: String,
    expression: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_of_the_dashboards_has_an_answer() {
    let scenario = Scenario::start().await.unwrap();
    let Ok(cluster) = scenario.test_bed() else {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and Prometheus runs inside the test bed only");
        return;
    };
    let model = scenario
        .model(NAME)
        .set("/spec/access/limits/requestsPerMinute", json!(4));
    scenario.create(model).await.unwrap();
    start_prometheus(cluster).await.unwrap();
    scenario.await_ready(NAME).await.unwrap();
    edit_the_service(&scenario).await;
    let (api, _way) = scenario.api(NAME).await.unwrap();
    send_requests(&api).await;

    let namespace = scenario.namespace().name();
    let fleet = dashboard("escadre-fleet");
    let everything = [("namespace", ".*"), ("deployment", ".*")];
    let one = dashboard("escadre-deployment");
    let ours = [("namespace", namespace), ("deployment", NAME), ("pod", ".*")];
    let queries = [queries(&fleet, &everything), queries(&one, &ours)].concat();
    assert!(queries.len() > 60, "only {} queries were found", queries.len());
    await_answers(&scenario, cluster, &queries).await;

    let pod = scenario.await_ready_pods(NAME, 1).await.unwrap().pop_first().unwrap().0;
    assert_values(cluster, &fleet, &everything, &[namespace, NAME]).await;
    assert_values(cluster, &one, &ours, &[namespace, NAME, &pod]).await;
    for alert in alerts() {
        let parameters = [("query", alert)];
        ask(cluster, "/api/v1/query", &parameters).await.unwrap();
    }
}

fn guide() -> String {
    std::fs::read_to_string(source_tree().join("docs/guides/monitoring.md")).unwrap()
}

/// The jobs of the guide, with the line in place that a Prometheus outside the cluster needs.
fn configuration(kubeconfig: &Path) -> String {
    const COMMENTED: &str = "# kubeconfig_file: /etc/prometheus/kubeconfig";
    let guide = guide();
    let (_, rest) = guide.split_once("```yaml\nscrape_configs:\n").unwrap();
    let (jobs, _) = rest.split_once("```").unwrap();
    assert_eq!(jobs.matches(COMMENTED).count(), 2, "one in each job");
    let jobs = jobs.replace(COMMENTED, &format!("kubeconfig_file: {}", kubeconfig.display()));
    format!("global: {{scrape_interval: 2s}}\nscrape_configs:\n{jobs}")
}

async fn start_prometheus(cluster: &Cluster) -> Result<()> {
    let programs = ensure_programs(&Cache::from_environment()?, &[Component::Prometheus]).await?;
    let folder = cluster.folder().join("monitoring");
    std::fs::create_dir_all(&folder).context("could not make a folder for Prometheus")?;
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, configuration(&cluster.inner_kubeconfig()))
        .with_context(|| format!("could not write {}", file.display()))?;
    let listen = format!("{NODE_ADDRESS}:{PORT}");
    let arguments = vec![
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        format!("--web.listen-address={listen}"),
    ];
    // Not under the name of its program: a cluster whose Prometheus has ended is not broken.
    let name = "monitoring";
    cluster.start_process(name, programs.file(Component::Prometheus)?, arguments)?;
    cluster.await_listening(name, &listen).await
}

/// Somebody edits what the operator owns, which it puts right: one panel shows how often that happens.
async fn edit_the_service(scenario: &Scenario) {
    let namespace = scenario.namespace();
    let services = namespace.api::<Service>();
    let port = async || -> Result<i32> {
        let spec = services.get(NAME).await?.spec.unwrap_or_default();
        Ok(spec.ports.unwrap_or_default().first().map_or(0, |port| port.port))
    };
    let before = port().await.unwrap();
    let edit = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 8088}]"#;
    let arguments = [
        "patch",
        "service",
        NAME,
        "--namespace",
        namespace.name(),
        "--type=json",
        "--patch",
        edit,
    ];
    let cluster = scenario.test_bed().unwrap();
    cluster.output("kubectl", &arguments).await.unwrap();
    namespace
        .await_condition("the port to be put right", Duration::from_secs(30), async || {
            Ok((port().await? == before).then_some(()))
        })
        .await
        .unwrap();
}

/// Streams, a whole answer, a bad request, and more than a minute's allowance at once.
async fn send_requests(api: &OpenAi) {
    let more = json!({"max_tokens": 8, "temperature": 0});
    for _ in 0..2 {
        api.chat_streamed(NAME, "Name a ship.", &more).await.unwrap();
    }
    api.chat(NAME, "Name a ship.", &more).await.unwrap();
    let bad = json!({"model": NAME, "messages": "none"});
    let answer = api.post("/v1/chat/completions", &bad).await.unwrap();
    assert_eq!(answer.status(), 400);
    let request = json!({"model": NAME, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello!"}]});
    let mut codes = Vec::new();
    for _ in 0..6 {
        let answer = api.post("/v1/chat/completions", &request).await.unwrap();
        codes.push(answer.status().as_u16());
    }
    assert!(codes.contains(&429), "{codes:?}");
}

/// A dashboard of the chart.
fn dashboard(name: &str) -> Value {
    let file = source_tree().join(format!("charts/escadre/files/dashboards/{name}.json"));
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(dashboard["uid"], name, "the links between the dashboards go by it");
    dashboard
}

/// Every query of every panel.
fn queries(dashboard: &Value, variables: &[(&str, &str)]) -> Vec<Query> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push(Query {
                panel: format!(
                    "{}: {}",
                    dashboard["uid"].as_str().unwrap(),
                    panel["title"].as_str().unwrap()
                ),
                expression: filled(target["expr"].as_str().unwrap(), variables),
            });
        }
    }
    found
}

/// A query as Grafana sends it.
fn filled(query: &str, variables: &[(&str, &str)]) -> String {
    let query = query.replace("$__rate_interval", RATE_INTERVAL);
    let query = variables
        .iter()
        .fold(query, |query, (name, value)| query.replace(&format!("${name}"), value));
    // `$1` is a group of a pattern.
    assert!(
        !query.replace("\"$1\"", "").contains('$'),
        "a variable is left in {query}"
    );
    query
}

/// Waits until every query has at least one series.
async fn await_answers(scenario: &Scenario, cluster: &Cluster, queries: &[Query]) {
    scenario
        .namespace()
        .await_condition("an answer to every query of the dashboards", SCRAPED, async || {
            for query in queries {
                let Query { panel, expression } = query;
                let now = now();
                let parameters = [
                    ("query", expression.clone()),
                    ("start", (now - 120).to_string()),
                    ("end", now.to_string()),
                    ("step", "5".to_owned()),
                ];
                let answer = ask(cluster, "/api/v1/query_range", &parameters).await;
                let answer = answer.with_context(|| panel.clone())?;
                let series = answer["result"].as_array().map_or(0, Vec::len);
                anyhow::ensure!(series > 0, "{panel} is empty: {expression}");
            }
            Ok(Some(()))
        })
        .await
        .unwrap();
}

/// Each variable that Grafana asks for offers what is expected, in the order of the variables.
async fn assert_values(cluster: &Cluster, dashboard: &Value, variables: &[(&str, &str)], expected: &[&str]) {
    let list = dashboard["templating"]["list"].as_array().unwrap();
    let asked: Vec<&str> = list
        .iter()
        .filter(|variable| variable["type"] == "query")
        .map(|variable| variable["query"]["query"].as_str().unwrap())
        .collect();
    assert_eq!(asked.len(), expected.len(), "{asked:?}");
    for (query, expected) in asked.iter().zip(expected) {
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).unwrap();
        let parameters = [("match[]", filled(selector, variables))];
        let path = format!("/api/v1/label/{label}/values");
        let values = ask(cluster, &path, &parameters).await.unwrap();
        assert!(
            values.as_array().unwrap().contains(&json!(expected)),
            "{query}: {values}"
        );
    }
}

/// The expressions in the guide's table of alerts.
fn alerts() -> Vec<String> {
    let guide = guide();
    let (_, table) = guide.split_once("| Alert | Expression |\n|---|---|\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let alerts: Vec<String> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    alerts
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What Prometheus answers.
async fn ask(cluster: &Cluster, path: &str, parameters: &[(&str, String)]) -> Result<Value> {
    let mut arguments = ["--silent", "--show-error", "--get"].map(str::to_owned).to_vec();
    for (name, value) in parameters {
        arguments.push("--data-urlencode".to_owned());
        arguments.push(format!("{name}={value}"));
    }
    arguments.push(format!("http://{NODE_ADDRESS}:{PORT}{path}"));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let text = cluster.output("curl", &arguments).await?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("Prometheus said {text:?}"))?;
    anyhow::ensure!(
        answer["status"] == "success",
        "Prometheus said {answer} to {parameters:?}"
    );
    Ok(answer["data"].clone())
}
