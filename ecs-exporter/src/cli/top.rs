//! `top`.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use ecs_exporter::live::{COLUMNS, Sampler};
use ecs_exporter::{Exporter, top};

use super::source::SourceArgs;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value = "2")]
    delay: f64,
    /// Write text to standard output instead of using the terminal.
    #[arg(short, long)]
    pub(super) batch: bool,
    /// With --batch, end after so many frames; without it they go on.
    #[arg(short = 'n', long, value_name = "N", requires = "batch")]
    iterations: Option<u64>,
    /// With --batch, write each frame as one line of JSON.
    #[arg(long, requires = "batch")]
    json: bool,
    /// Column to sort by at first: name, share, deviation, ...
    #[arg(short, long, value_name = "COLUMN", default_value = "share")]
    sort: String,
    /// Only VMs whose name matches this regular expression; case does not matter.
    #[arg(short, long, value_name = "REGEX", default_value = "")]
    filter: String,
    #[command(flatten)]
    source: SourceArgs,
}

/// Between the first look, which has no rates, and the one that is shown first.
const LEAST_DELAY: f64 = 0.1;
const MOST_DELAY: f64 = 3600.0;

pub(super) fn run(args: &TopArgs) -> anyhow::Result<()> {
    ensure!(
        (LEAST_DELAY..=MOST_DELAY).contains(&args.delay),
        "--delay {} is outside {LEAST_DELAY} to {MOST_DELAY} seconds",
        args.delay
    );
    let known = COLUMNS.iter().map(|column| column.id);
    let known: Vec<&str> = ["name"].into_iter().chain(known).collect();
    ensure!(
        known.contains(&args.sort.as_str()),
        "--sort {} is no column; there are {}",
        args.sort,
        known.join(", ")
    );
    let setup = top::Setup {
        delay: Duration::from_secs_f64(args.delay),
        sort: args.sort.clone(),
        filter: args.filter.clone(),
    };
    let exporter = Exporter::new(&args.source.config()?)?;
    if !args.batch {
        return Ok(top::run(exporter, &setup)?);
    }
    match batch(&exporter, &setup, args) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("Cannot write to stdout"),
    }
}

fn batch(exporter: &Exporter, setup: &top::Setup, args: &TopArgs) -> io::Result<()> {
    let mut sampler = Sampler::default();
    sampler.take(&exporter.read());
    let mut out = io::stdout().lock();
    let mut done = 0;
    while args.iterations.is_none_or(|wanted| done < wanted) {
        std::thread::sleep(setup.delay);
        let frame = sampler.take(&exporter.read());
        if args.json {
            serde_json::to_writer(&mut out, &frame)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", top::batch(&frame, setup))?;
        }
        out.flush()?;
        done += 1;
    }
    Ok(())
}
