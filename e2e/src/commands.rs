//! What each command of `escadre-testbed` does.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command as StdCommand, ExitCode};

use anyhow::{Context as _, Result, bail};
use escadre_e2e::cluster::{
    self, Cache, Cluster, Component, Forward, Image, NODE_ADDRESS, Network, Options, Phase, ProcessId,
};
use escadre_e2e::mirror::{Fault, Mirror};
use escadre_e2e::status_pages;

use crate::args::{
    Args, BuildArgs, Command, ExecArgs, ForwardArgs, LoadImageArgs, MirrorArgs, NameArgs, StatusArgs, StatusPagesArgs,
    UpArgs,
};

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let cache = Cache::from_environment()?;
    if let Command::Forward(args) = &args.command
        && args.foreground
    {
        // Before any other thread is there: the whole process moves into the cluster's network.
        return forward_in_foreground(&cache, args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the async runtime")?;
    runtime.block_on(async {
        match args.command {
            Command::Up(args) => up(&cache, &args).await,
            Command::Down(args) => down(&cache, &args).await,
            Command::Status(args) => status(&cache, &args).await,
            Command::Exec(args) => exec(&cache, &args),
            Command::Shell(args) => shell(&cache, &args),
            Command::LoadImage(args) => load_image(&cache, &args).await,
            Command::Build(args) => build(&cache, &args).await,
            Command::Forward(args) => forward(&cache, &args).await,
            Command::Mirror(args) => mirror(&cache, &args).await,
            Command::StatusPages(args) => status_pages(&cache, &args).await,
            Command::Guard(args) => guard(&cache, &args).await,
        }
    })
}

fn options(args: &UpArgs) -> Result<Options> {
    Ok(Options {
        node: !args.control_plane_only,
        fake_nodes: args.kwok_nodes,
        gpus: args.gpus,
        audit_policy: args.audit_policy.clone(),
        ..Options::named(&args.cluster.name)?
    })
}

async fn up(cache: &Cache, args: &UpArgs) -> Result<ExitCode> {
    let cluster = cluster::up(cache, &options(args)?).await?;
    say(&format!("KUBECONFIG={}", cluster.kubeconfig().display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The test holds the other end of standard input: it ends when the test ends, in whatever way.
async fn guard(cache: &Cache, args: &UpArgs) -> Result<ExitCode> {
    let options = Options {
        owner: ProcessId::own(),
        ..options(args)?
    };
    let up = cluster::up(cache, &options).await;
    if up.is_ok() {
        say("up")?;
        tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()))
            .await
            .context("waiting for the end of the tests panicked")?
            .context("could not wait for the end of the tests")?;
    }
    cluster::down(cache, &args.cluster.name).await?;
    up.map(|_| ExitCode::SUCCESS)
}

async fn down(cache: &Cache, args: &NameArgs) -> Result<ExitCode> {
    if cluster::down(cache, &args.name).await? {
        eprintln!("the cluster {} is gone", args.name);
    } else {
        eprintln!("there is no cluster {}", args.name);
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(cache: &Cache, args: &StatusArgs) -> Result<ExitCode> {
    let states = cluster::list(cache)?;
    let wanted: Vec<_> = states
        .into_iter()
        .filter(|state| args.name.as_ref().is_none_or(|name| *name == state.name))
        .collect();
    if wanted.is_empty() {
        say(&args
            .name
            .as_ref()
            .map_or("no clusters".to_owned(), |name| format!("no cluster {name}")))?;
        return Ok(if args.name.is_some() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        });
    }
    let mut complete = true;
    for state in wanted {
        if state.phase != Phase::Up {
            say(&format!("{}: is starting, or was interrupted", state.name))?;
            complete = false;
            continue;
        }
        let cluster = Cluster::attach(cache, &state.name)?;
        complete &= show(&cluster).await?;
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(cluster: &Cluster) -> Result<bool> {
    let processes = cluster.processes();
    let answers = cluster.is_ready().await;
    let complete = answers && cluster.broken().is_empty();
    let node = if cluster.state().node { "one node" } else { "no node" };
    let word = if complete { "up" } else { "incomplete" };
    say(&format!(
        "{}: {word}, {node}, {} fake nodes",
        cluster.name(),
        cluster.state().fake_nodes
    ))?;
    say(&format!("  kubeconfig  {}", cluster.kubeconfig().display()))?;
    say(&format!("  logs        {}", cluster.folder().join("logs").display()))?;
    if !answers {
        say("  the API server does not answer")?;
    }
    for record in processes.records() {
        let life = if record.process.is_alive() { "running" } else { "ended" };
        say(&format!("  {:<26} {life:<8} pid {}", record.name, record.process.pid))?;
    }
    for forward in cluster.forwards() {
        say(&format!("  {} -> {}", forward.listen, forward.target))?;
    }
    Ok(complete)
}

fn exec(cache: &Cache, args: &ExecArgs) -> Result<ExitCode> {
    let Some((program, arguments)) = args.command.split_first() else {
        bail!("no command was given")
    };
    if args.kubeconfig.is_some() || args.context.is_some() {
        return exec_elsewhere(args, program, arguments);
    }
    let cluster = Cluster::attach(cache, &args.cluster.name)?;
    replace(cluster.command(program).as_std_mut().args(arguments), program)
}

/// On a cluster that the person named: only `KUBECONFIG` is set, to that cluster alone.
fn exec_elsewhere(args: &ExecArgs, program: &str, arguments: &[String]) -> Result<ExitCode> {
    let kubeconfig = escadre_e2e::external::isolated_kubeconfig(args.kubeconfig.as_deref(), args.context.as_deref())?;
    // Not replaced, because the file must be removed afterwards.
    let status = StdCommand::new(program)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig.path())
        .status()
        .with_context(|| format!("could not run {program}"))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn shell(cache: &Cache, args: &NameArgs) -> Result<ExitCode> {
    let cluster = Cluster::attach(cache, &args.name)?;
    eprintln!(
        "a shell inside the cluster {}: kubectl, helm and ctr are there; leave it with `exit`",
        args.name
    );
    let mut command = cluster.command("bash");
    command.arg("--norc").env("PS1", format!("({}) \\w# ", args.name));
    replace(command.as_std_mut(), "bash")
}

/// Becomes the program, so that signals and the exit status are its own.
fn replace(command: &mut StdCommand, program: &str) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("could not run {program}"))
}

async fn load_image(cache: &Cache, args: &LoadImageArgs) -> Result<ExitCode> {
    let image = Image::service(&args.image, &args.binary)?;
    if let Some(output) = &args.output {
        let file = image.write(cache).await?;
        std::fs::copy(&file, output).with_context(|| format!("could not write {}", output.display()))?;
        eprintln!("wrote {} to {}", args.image, output.display());
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::attach(cache, &args.cluster.name)?;
    let file = cluster.load_image(&image).await?;
    let megabytes = file
        .metadata()
        .map(|metadata| metadata.len() / 1_000_000)
        .unwrap_or_default();
    eprintln!(
        "loaded {} ({megabytes} MB) into the cluster {}",
        args.image,
        cluster.name()
    );
    Ok(ExitCode::SUCCESS)
}

async fn build(cache: &Cache, args: &BuildArgs) -> Result<ExitCode> {
    let all = Component::ALL;
    let components = if args.components.is_empty() {
        &all[..]
    } else {
        &args.components
    };
    let programs = cluster::ensure_programs(cache, components).await?;
    for (_, file) in programs.iter() {
        say(&file.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn forward(cache: &Cache, args: &ForwardArgs) -> Result<ExitCode> {
    if args.label == cluster::API_FORWARD {
        bail!(
            "the cluster itself uses a forward named {}; choose another name with --as",
            cluster::API_FORWARD
        );
    }
    let cluster = Cluster::attach(cache, &args.cluster.name)?;
    let forward = cluster
        .forward(&args.label, &args.listen.to_string(), &args.target)
        .await?;
    say(&forward.listen.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn forward_in_foreground(cache: &Cache, args: &ForwardArgs) -> Result<ExitCode> {
    let inner = match &args.inner_kubeconfig {
        Some(file) => file.clone(),
        None => Cluster::attach(cache, &args.cluster.name)?.inner_kubeconfig(),
    };
    let network = Network::of(&args.cluster.name);
    let mut forward = Forward {
        name: args.label.clone(),
        listen: args.listen,
        target: args.target.to_string(),
    };
    cluster::serve_forward(
        &network,
        &mut forward,
        args.target.clone(),
        &inner,
        args.ready_file.as_deref(),
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn mirror(cache: &Cache, args: &MirrorArgs) -> Result<ExitCode> {
    let root = args
        .root
        .canonicalize()
        .with_context(|| format!("{} is not a folder", args.root.display()))?;
    if let Some(name) = &args.name {
        let cluster = Cluster::attach(cache, name)?;
        let listen = args
            .listen
            .map_or(format!("{NODE_ADDRESS}:8000"), |listen| listen.to_string());
        start_mirror(&cluster, &root, &listen, args.fault).await?;
        say(&format!("http://{listen}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let listen = args.listen.unwrap_or(([127, 0, 0, 1], 8000).into());
    let mirror = Mirror::start(&root, listen).await?;
    mirror.set_fault(args.fault);
    eprintln!("serving the models in {} at {}", root.display(), mirror.endpoint());
    mirror.wait().await?;
    Ok(ExitCode::SUCCESS)
}

async fn start_mirror(cluster: &Cluster, root: &Path, listen: &str, fault: Option<Fault>) -> Result<()> {
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let mut arguments = vec![
        "mirror".to_owned(),
        format!("--root={}", root.display()),
        format!("--listen={listen}"),
    ];
    arguments.extend(fault.map(|fault| format!("--fault={fault}")));
    cluster.start_process("mirror", &program, arguments)?;
    cluster.await_listening("mirror", listen).await
}

async fn status_pages(cache: &Cache, args: &StatusPagesArgs) -> Result<ExitCode> {
    match &args.name {
        Some(name) => status_pages::start(&Cluster::attach(cache, name)?).await?,
        None => status_pages::serve(args.listen).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("could not write to standard output")
}
