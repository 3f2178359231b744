//! The programs of Prometheus, and jsonnet: named by a variable, in PATH, or unpacked from Debian's packages
//! into a cache of the user. Nothing is installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Debian packages that are unpacked together.
struct Packages {
    /// Where in the cache.
    folder: &'static str,
    names: &'static [&'static str],
    /// The folder with the programs, or why there is none. Asked once: a download that fails is
    /// slow.
    programs: OnceLock<Result<PathBuf, String>>,
}

static PROMETHEUS: Packages = Packages {
    folder: "prometheus",
    names: &["prometheus", "prometheus-alertmanager"],
    programs: OnceLock::new(),
};

static JSONNET: Packages = Packages {
    folder: "jsonnet",
    names: &["jsonnet"],
    programs: OnceLock::new(),
};

/// The program, or a printed reason for not having it.
pub fn promtool(test: &str) -> Option<PathBuf> {
    find(test, "PROMTOOL", &["promtool"], &PROMETHEUS)
}

/// See [`promtool`].
pub fn prometheus(test: &str) -> Option<PathBuf> {
    find(test, "PROMETHEUS", &["prometheus"], &PROMETHEUS)
}

/// See [`promtool`].
pub fn amtool(test: &str) -> Option<PathBuf> {
    find(test, "AMTOOL", &["amtool"], &PROMETHEUS)
}

/// See [`promtool`].
pub fn jsonnet(test: &str) -> Option<PathBuf> {
    find(test, "JSONNET", &["jsonnet"], &JSONNET)
}

/// Command that starts an Alertmanager, which Debian gives a longer name.
pub fn alertmanager(test: &str) -> Option<Command> {
    let names = ["alertmanager", "prometheus-alertmanager"];
    let program = find(test, "ALERTMANAGER", &names, &PROMETHEUS)?;
    let share = program
        .parent()
        .and_then(Path::parent)
        .map(|root| root.join("share"));
    let Some(share) = share.filter(|share| share.join("prometheus/alertmanager").is_dir()) else {
        return Some(Command::new(program));
    };
    // Debian's looks for its templates in /usr/share only: it gets a /usr/share of its own.
    let script = "mount --bind \"$0\" /usr/share && exec \"$@\"";
    let command = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command.arg(&share).arg(program);
        command
    };
    if let Err(reason) = run(&mut command(Path::new("true"))) {
        println!("SKIPPED: {test}: no mount name space for Alertmanager's templates: {reason}");
        return None;
    }
    Some(command(&program))
}

fn find(test: &str, variable: &str, names: &[&str], packages: &Packages) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "{variable} names {}, which is no file",
            path.display()
        );
        return Some(path);
    }
    let in_dir = |dir: &Path| {
        let mut paths = names.iter().map(|name| dir.join(name));
        paths.find(|path| path.is_file())
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).find_map(|dir| in_dir(&dir)) {
        return Some(found);
    }
    let programs = packages.programs.get_or_init(|| unpacked(packages));
    let names = names.join(" or ");
    let reason = match programs.as_ref().map(|dir| in_dir(dir)) {
        Ok(Some(path)) => return Some(path),
        Ok(None) => format!("Debian's packages have no {names}"),
        Err(reason) => reason.clone(),
    };
    println!("SKIPPED: {test}: {names} is neither in PATH nor named by {variable}, and {reason}");
    None
}

/// The folder with the programs; downloads and unpacks the packages the first time.
fn unpacked(packages: &Packages) -> Result<PathBuf, String> {
    let cache = cache_dir()?.join(packages.folder);
    let programs = cache.join("root/usr/bin");
    let disk = |error| format!("{} cannot be written: {error}", cache.display());
    fs::create_dir_all(&cache).map_err(disk)?;
    // Test programs run side by side: one fetches, the others wait for it.
    let lock = File::create(cache.join("lock")).map_err(disk)?;
    lock.lock().map_err(disk)?;
    if programs.is_dir() {
        return Ok(programs);
    }
    let work = tempfile::tempdir_in(&cache).map_err(disk)?;
    let mut download = Command::new("timeout");
    download
        .args(["120", "apt-get", "download", "-qq"])
        .args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1"])
        .args(packages.names)
        .current_dir(work.path());
    run(&mut download)?;
    let root = work.path().join("root");
    for file in fs::read_dir(work.path()).map_err(disk)? {
        let file = file.map_err(disk)?.path();
        if file.extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
        }
    }
    // Last, and at once: what is there is whole.
    fs::rename(&root, cache.join("root")).map_err(disk)?;
    Ok(programs)
}

/// A folder of the cache with these packages of npm, which it fills the first time.
pub fn npm(folder: &str, packages: &[&str]) -> Result<PathBuf, String> {
    whole(folder, |dir| {
        let mut install = Command::new("timeout");
        install
            .args(["900", "npm", "install", "--ignore-scripts", "--no-audit"])
            .args(["--no-fund", "--legacy-peer-deps", "--prefix"])
            .arg(dir)
            .args(packages);
        run(&mut install)
    })
}

/// A Python environment in the cache with these packages, installed in groups, which pip fills the
/// first time.
pub fn python(folder: &str, groups: &[&[&str]]) -> Result<PathBuf, String> {
    whole(folder, |dir| {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(dir))?;
        groups.iter().try_for_each(|packages| {
            let mut install = Command::new("timeout");
            install
                .arg("300")
                .arg(dir.join("bin/pip"))
                .args(["install", "--quiet", "--only-binary=:all:"])
                .args(*packages);
            run(&mut install)
        })
    })
}

/// A folder of the cache, filled the first time.
fn whole(folder: &str, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let dir = cache_dir()?.join(folder);
    let disk = |error| format!("{} cannot be written: {error}", dir.display());
    if !dir.join("whole").is_file() {
        fs::create_dir_all(&dir).map_err(disk)?;
        fill(&dir)?;
        fs::write(dir.join("whole"), "").map_err(disk)?;
    }
    Ok(dir)
}

/// Where all of the project keeps what it downloads.
pub fn cache_dir() -> Result<PathBuf, String> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("ECS_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("vmm-ecs")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/vmm-ecs")))
        .ok_or_else(|| "there is no HOME to keep a download in".to_owned())
}

/// Runs a command to its end; its last words are the reason of a failure.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = format!("{:?}", command.get_program());
    let output = command
        .output()
        .map_err(|error| format!("{name} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    Err(format!(
        "{name} failed: {}",
        last.unwrap_or("no reason given")
    ))
}
