//! The chart renders, its values are checked strictly, and what it grants is what the operator asks for.

use escadre_e2e::chart;

async fn render(values: &[&str]) -> Result<String, String> {
    chart::render("escadre-system", values)
        .await
        .map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn chart_passes_lint() {
    let output = chart::helm(&["lint", "--strict", "charts/escadre"]).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn rendered_operator_runs_without_rights_on_its_node() {
    let text = render(&[]).await.unwrap();
    for words in [
        "kind: CustomResourceDefinition",
        "helm.sh/resource-policy: keep",
        "kind: Deployment",
        "replicas: 2",
        "type: RollingUpdate",
        "kind: PodDisruptionBudget",
        "--leader-election=true",
        "kind: ValidatingAdmissionPolicy",
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
    ] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    assert!(
        !text.contains("verbs: [\"*\"]") && !text.contains("resources: [\"*\"]"),
        "{text}"
    );
    // The descriptions of fields speak of them, so without the resource.
    let text = render(&["--set", "crds.install=false"]).await.unwrap();
    assert!(!text.contains("secrets"), "the operator reads no Secrets");
}

#[tokio::test]
async fn resource_can_be_left_to_someone_else() {
    let text = render(&["--set", "crds.install=false"]).await.unwrap();
    assert!(!text.contains("kind: CustomResourceDefinition"));
}

#[tokio::test]
async fn mistyped_value_fails_the_install() {
    let error = render(&["--set", "operator.image.tga=1"]).await.unwrap_err();
    assert!(error.contains("tga"), "{error}");
    let error = render(&["--set", "operator.image.pullPolicy=Sometimes"])
        .await
        .unwrap_err();
    assert!(error.contains("pullPolicy"), "{error}");
}

#[tokio::test]
async fn namespaced_mode_grants_nothing_outside_its_namespaces_but_to_read_policies() {
    let wide = render(&["--set", "watchNamespace=fleet"]).await.unwrap();
    let roles: Vec<_> = wide
        .split("\n---\n")
        .filter(|one| one.contains("\nkind: ClusterRole\n"))
        .collect();
    assert!(
        roles.len() == 1 && roles[0].contains("resources: [modelpolicies]"),
        "{roles:?}"
    );
    assert!(!roles[0].contains("create") && !roles[0].contains("patch"), "{roles:?}");
    let text = render(&["--set", "watchNamespace=fleet,modelPolicy.enabled=false"])
        .await
        .unwrap();
    assert!(
        !text.contains("kind: ClusterRole") && text.contains("- --ignore-policies"),
        "{text}"
    );
    for document in text.split("\n---\n").filter(|one| one.contains("kind: Role")) {
        assert!(
            document.contains("namespace: fleet") || document.contains("namespace: escadre-system"),
            "{document}"
        );
    }
    assert!(
        text.contains("kubernetes.io/metadata.name: fleet"),
        "the admission policy judges the watched namespace only"
    );
}

#[tokio::test]
async fn single_operator_has_no_budget_that_would_stop_a_drain() {
    let only = ["--set", "replicas=1", "--show-only", "templates/operator.yaml"];
    let text = render(&only).await.unwrap();
    assert!(!text.contains("kind: PodDisruptionBudget") && !text.contains("podAntiAffinity"));
}

#[tokio::test]
async fn admission_policy_can_be_left_out() {
    let text = render(&["--set", "admissionPolicy.enabled=false"]).await.unwrap();
    assert!(!text.contains("ValidatingAdmissionPolicy"));
}

#[tokio::test]
async fn pod_monitor_is_made_when_asked_for() {
    assert!(!render(&[]).await.unwrap().contains("kind: PodMonitor"));
    let values = [
        "--set",
        "metrics.podMonitor.enabled=true,metrics.podMonitor.labels.team=sea",
    ];
    let text = render(&values).await.unwrap();
    for words in ["kind: PodMonitor", "team: sea", "honorLabels: true"] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    let error = render(&["--set", "metrics.podMonitor.interval=often"])
        .await
        .unwrap_err();
    assert!(error.contains("interval"), "{error}");
}

#[tokio::test]
async fn dashboards_are_made_when_asked_for_and_as_grafana_wants_them() {
    assert!(!render(&[]).await.unwrap().contains("grafana_dashboard"));
    let values = [
        "--set",
        "dashboards.enabled=true,dashboards.namespace=lookout,dashboards.annotations.grafana_folder=Sea",
        "--show-only",
        "templates/dashboards.yaml",
    ];
    let text = render(&values).await.unwrap();
    for words in [
        "kind: ConfigMap",
        "namespace: lookout",
        "grafana_dashboard: \"1\"",
        "grafana_folder: Sea",
        "escadre-fleet.json: |",
        "escadre-deployment.json: |",
        // Helm has left these to Grafana.
        "\"legendFormat\": \"{{namespace}}/{{deployment}}\"",
        "${__data.fields.Deployment}",
    ] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    let other = [
        "--set",
        "dashboards.enabled=true,dashboards.label=board,dashboards.labelValue=sea",
    ];
    let text = render(&other).await.unwrap();
    assert!(
        text.contains("board: \"sea\"") && !text.contains("grafana_dashboard"),
        "{text}"
    );
    let error = render(&["--set", "dashboards.labels=1"]).await.unwrap_err();
    assert!(error.contains("labels"), "{error}");
}
