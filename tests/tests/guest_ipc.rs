//! Programs of Debian that wake each other, on a guest whose idle CPUs poll and do not.
//!
//! The host is this test: it lives, and says whether the pCPUs are free. Speed is printed and never
//! judged, as every instruction is emulated; that each program runs to its end is, and when CPUs poll.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ecs_tests::linux::cases::PATIENCE;
use ecs_tests::linux::{Guest, Machine, Polls, Watch, on_emulator};
use ecs_tests::{parts, skip, slow};

const NAME: &str = "programs_that_wake_each_other_with_and_without_polls";
/// The guest's CPUs.
const CPUS: [usize; 2] = [0, 1];
/// Longest polls where CPUs poll: the driver's default.
const POLL_US: u32 = 200;
const ROUNDS: usize = 3;
/// Time for one program, which takes a second where nothing else runs.
const LIMIT: Duration = Duration::from_secs(600);
/// Time from the end of the last poll to its count being seen here.
const SLACK: Duration = Duration::from_millis(500);

/// How a program says how fast it was.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// The last number after this text, as it is.
    Rate(&'static str),
    /// So many things took the time that is the last number after this text.
    Took(f64, &'static str),
    /// The second number over the first, each after its text.
    Over(&'static str, &'static str),
    /// Operations a second of real time, in the line of this stressor.
    Stressor(&'static str),
}

impl Figure {
    /// More is better.
    fn read(self, said: &str) -> Option<f64> {
        match self {
            Self::Rate(text) => number_after(said, text),
            Self::Took(things, text) => Some(things / number_after(said, text)?),
            Self::Over(time, things) => {
                Some(number_after(said, things)? / number_after(said, time)?)
            }
            Self::Stressor(name) => said.lines().find_map(|line| {
                // "stress-ng: metrc: [PID] NAME OPS REAL USER SYSTEM OPS/S ..."
                let mut words = line.split_whitespace().skip_while(|word| *word != name);
                words.nth(5)?.parse().ok()
            }),
        }
    }
}

fn number_after(said: &str, text: &str) -> Option<f64> {
    let (_, rest) = said.rsplit_once(text)?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
    rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
}

#[derive(Debug)]
struct Benchmark {
    command: &'static str,
    figure: Figure,
    /// What the figure counts.
    unit: &'static str,
}

const fn benchmark(command: &'static str, figure: Figure, unit: &'static str) -> Benchmark {
    Benchmark {
        command,
        figure,
        unit,
    }
}

/// A program, its package, and what is run of it.
const PROGRAMS: [(&str, &str, &[Benchmark]); 4] = [
    (
        "hackbench",
        "rt-tests",
        &[
            benchmark(
                "hackbench -g 1 -f 1 -l 20000",
                Figure::Took(20_000.0, "Time:"),
                "messages/s",
            ),
            benchmark(
                "hackbench --pipe -g 1 -f 1 -l 40000",
                Figure::Took(40_000.0, "Time:"),
                "messages/s",
            ),
            benchmark(
                "hackbench --pipe --threads -g 1 -f 1 -l 40000",
                Figure::Took(40_000.0, "Time:"),
                "messages/s",
            ),
        ],
    ),
    (
        "perf",
        "linux-perf",
        &[
            benchmark(
                "perf bench sched pipe -l 4000",
                Figure::Took(4000.0, "Total time:"),
                "rounds/s",
            ),
            benchmark(
                "perf bench sched messaging -g 1 -l 5",
                Figure::Took(2000.0, "Total time:"),
                "messages/s",
            ),
            benchmark(
                "perf bench futex wake -t 4",
                Figure::Took(4000.0, "threads in"),
                "wake-ups/s",
            ),
            benchmark(
                "perf bench futex lock-pi -t 2 -r 1",
                Figure::Rate("Averaged"),
                "locks/s",
            ),
        ],
    ),
    (
        "stress-ng",
        "stress-ng",
        &[
            benchmark(
                "stress-ng --metrics-brief --pipe 1 --pipe-ops 30000",
                Figure::Stressor("pipe"),
                "ops/s",
            ),
            benchmark(
                "stress-ng --metrics-brief --futex 1 --futex-ops 3000",
                Figure::Stressor("futex"),
                "ops/s",
            ),
            benchmark(
                "stress-ng --metrics-brief --mutex 1 --mutex-ops 30000",
                Figure::Stressor("mutex"),
                "ops/s",
            ),
            benchmark(
                "stress-ng --metrics-brief --switch 1 --switch-ops 8000",
                Figure::Stressor("switch"),
                "ops/s",
            ),
            benchmark(
                "stress-ng --metrics-brief --fork 1 --fork-ops 100",
                Figure::Stressor("fork"),
                "ops/s",
            ),
            benchmark(
                "su nobody -c 'stress-ng --metrics-brief --exec 1 --exec-max 1 --exec-ops 10 \
                 --temp-path /tmp'",
                Figure::Stressor("exec"),
                "ops/s",
            ),
        ],
    ),
    (
        "sysbench",
        "sysbench",
        &[
            benchmark(
                "sysbench threads --threads=2 --thread-locks=1 --thread-yields=10 --time=1 run",
                Figure::Over("total time:", "total number of events:"),
                "events/s",
            ),
            benchmark(
                "sysbench mutex --threads=2 --mutex-num=1 --mutex-locks=1000000 --mutex-loops=10 run",
                Figure::Over("total time:", "total number of events:"),
                "threads/s",
            ),
        ],
    ),
];

/// Where this machine has a program; not a script, whose interpreter a guest lacks.
fn find(program: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/bin").join(program);
    let mut magic = [0; 4];
    File::open(&path).ok()?.read_exact(&mut magic).ok()?;
    (&magic == b"\x7fELF").then_some(path)
}

/// Polls of both CPUs that met work, and those in vain.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    paid: u32,
    wasted: u32,
}

impl Counts {
    fn read(watch: &Watch) -> Self {
        let polls = CPUS.map(|cpu| watch.polls(cpu).unwrap());
        let sum = |of: fn(&Polls) -> u32| polls.iter().map(of).fold(0, u32::wrapping_add);
        Self {
            paid: sum(|polls| polls.paid),
            wasted: sum(|polls| polls.wasted),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            paid: self.paid.wrapping_sub(before.paid),
            wasted: self.wasted.wrapping_sub(before.wasted),
        }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            paid: self.paid + more.paid,
            wasted: self.wasted + more.wasted,
        }
    }
}

/// What came of one benchmark.
#[derive(Debug, Default)]
struct Row {
    on: Vec<f64>,
    off: Vec<f64>,
    overloaded: f64,
    /// While polls were on and the pCPUs free.
    polls: Counts,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap()
}

impl Row {
    fn print(&self, benchmark: &Benchmark) {
        let ratios: Vec<f64> = self
            .on
            .iter()
            .zip(&self.off)
            .map(|(on, off)| on / off)
            .collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "| `{}` | {} | {:.0} | {:.0} | {:.2} | {least:.2} to {most:.2} | {:.0} | {} | {} |",
            benchmark.command,
            benchmark.unit,
            median(&self.on),
            median(&self.off),
            median(&ratios),
            self.overloaded,
            self.polls.paid,
            self.polls.wasted
        );
    }
}

/// Runs one to its end; its figure.
fn run(guest: &mut Guest, benchmark: &Benchmark) -> f64 {
    let said = guest.sh_within(benchmark.command, LIMIT).unwrap();
    let figure = benchmark.figure.read(&said).unwrap_or_default();
    assert!(
        figure.is_finite() && figure > 0.0,
        "{}: {figure}: {said}",
        benchmark.command
    );
    figure
}

fn poll_for(guest: &mut Guest, us: u32) {
    let parameter = "/sys/module/virtio_ecs/parameters/idle_poll_us";
    guest.sh(&format!("echo {us} >{parameter}")).unwrap();
}

/// A stressor that starts programs refuses to do so as root.
const USER: &str = "mkdir -p /etc; chmod 1777 /tmp; \
                    echo 'nobody:x:65534:65534::/tmp:/bin/sh' >/etc/passwd";

/// The same boot has all of it, and each benchmark its turns with and without polls side by side.
fn compare(watch: &Watch, guest: &mut Guest, benchmarks: &[&Benchmark]) {
    guest.sh(USER).unwrap();
    guest.load_driver("ctrl_timeout_ms=10000").unwrap();
    watch.wait_for(&CPUS, PATIENCE).unwrap();
    let _heart = watch.beat();
    let mut rows: Vec<Row> = benchmarks.iter().map(|_| Row::default()).collect();
    for round in 0..ROUNDS {
        let mut paid = 0;
        for (benchmark, row) in benchmarks.iter().zip(&mut rows) {
            for on in [round % 2 == 0, round % 2 != 0] {
                poll_for(guest, if on { POLL_US } else { 0 });
                let before = Counts::read(watch);
                let figure = run(guest, benchmark);
                let polls = Counts::read(watch).since(before);
                if on {
                    row.on.push(figure);
                    row.polls = row.polls.plus(polls);
                    paid += polls.paid;
                } else {
                    row.off.push(figure);
                    // Each CPU may have been in a poll.
                    let most = u32::try_from(CPUS.len()).unwrap();
                    assert!(
                        polls.paid + polls.wasted <= most,
                        "{benchmark:?}: {polls:?}"
                    );
                }
            }
        }
        assert!(paid > 0, "round {round}: no poll of a free pCPU met work");
    }

    poll_for(guest, POLL_US);
    for cpu in CPUS {
        watch.slots(cpu).unwrap().set_overloaded(true);
    }
    // A poll that was under way.
    sleep(SLACK);
    let before = Counts::read(watch);
    for (benchmark, row) in benchmarks.iter().zip(&mut rows) {
        row.overloaded = run(guest, benchmark);
        assert_eq!(
            Counts::read(watch),
            before,
            "{benchmark:?} while overloaded"
        );
    }

    println!(
        "| benchmark | | on | off | ratio | of rounds | overloaded | polls paid | wasted |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for (benchmark, row) in benchmarks.iter().zip(&rows) {
        row.print(benchmark);
    }
}

#[test]
fn programs_that_wake_each_other_with_and_without_polls() {
    let parts = parts!(NAME);
    slow!(NAME);
    let mut machine = Machine {
        cpus: CPUS.len(),
        memory: 768,
        ..Machine::default()
    };
    let mut benchmarks = Vec::new();
    for (program, package, runs) in &PROGRAMS {
        match find(program) {
            Some(path) => {
                machine.programs.push(path);
                benchmarks.extend(runs.iter());
            }
            None => println!(
                "SKIPPED: {NAME} with {program}: this machine has no {program} ({package})"
            ),
        }
    }
    if benchmarks.is_empty() {
        skip!(NAME, "none of its programs is here");
    }
    let kernel = parts.kernel("7.3").unwrap();
    let boot = || {
        let watch = Watch::new().unwrap();
        let guest = Guest::boot(&parts, &kernel, &machine, watch.socket()).unwrap();
        (watch, guest)
    };
    on_emulator(
        &kernel,
        boot,
        |(_, guest)| guest,
        |(watch, guest)| {
            let start = Instant::now();
            compare(watch, guest, &benchmarks);
            println!(
                "Linux {}, idle_poll_us={POLL_US}: {ROUNDS} rounds in {:.0?}",
                kernel.version(),
                start.elapsed()
            );
            assert_eq!(guest.complaints(), Vec::<String>::new());
            assert_eq!(watch.faults(), 0);
        },
    );
}
