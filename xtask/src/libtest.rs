//! Reads what test programs built with libtest print under `--show-output`.

use std::collections::{BTreeMap, BTreeSet};

use crate::tally::Tally;

/// Beginning of the line a test prints when this machine cannot run it.
const SKIPPED: &str = "SKIPPED: ";

/// Part of a test program's output.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Compilers, and whatever else runs between test programs.
    #[default]
    Outside,
    /// One line a test as it ends.
    Progress,
    /// What passing tests printed.
    Successes,
    /// What failing tests printed, then their names.
    Failures,
}

/// One test program.
#[derive(Debug, Default)]
struct Program {
    /// Test whose output comes now.
    current: Option<String>,
    /// Passing tests that said they were skipped, with their reasons.
    skips: BTreeMap<String, BTreeSet<String>>,
    /// Reasons printed around libtest's capture, e.g. by a child process.
    stray: BTreeSet<String>,
    ignored: Vec<String>,
    failed: Vec<String>,
}

/// Reads line by line; [`Reader::end`] gives the result.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    tally: Tally,
    section: Section,
    program: Program,
}

impl Reader {
    /// Takes one line, without its end. Returns whether a person wants to see it: the output of
    /// passing tests is left out.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if is_start(line) {
            self.died();
            self.section = Section::Progress;
            return true;
        }
        if self.section == Section::Outside {
            return true;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.finish(counts);
            return true;
        }
        match line {
            "successes:" => {
                self.enter(Section::Successes);
                return false;
            }
            "failures:" => {
                // Comes twice; only the second one is followed by nothing but names.
                self.program.failed.clear();
                self.enter(Section::Failures);
                return true;
            }
            _ => {}
        }
        if let Some(skip) = line.strip_prefix(SKIPPED) {
            self.skip(skip.trim());
        } else if let Some(name) = block_name(line) {
            self.program.current = Some(name.to_owned());
        } else if self.section == Section::Failures
            && let Some(name) = line.strip_prefix("    ")
        {
            self.program.failed.push(name.to_owned());
        } else if self.section == Section::Progress
            && let Some(name) = ignored_name(line)
        {
            self.program.ignored.push(name);
        }
        self.section != Section::Successes
    }

    /// The result, once cargo has ended. `what` names the command if it failed for no test's sake.
    pub(crate) fn end(mut self, success: bool, what: &str) -> Tally {
        self.died();
        if !success && self.tally.failed.is_empty() {
            self.tally.failed.push(format!("{what}: see above"));
        }
        self.tally
    }

    fn enter(&mut self, section: Section) {
        self.section = section;
        self.program.current = None;
    }

    fn skip(&mut self, skip: &str) {
        let reasons = match (self.section, &self.program.current) {
            // It failed whatever it says.
            (Section::Failures, _) => return,
            (Section::Successes, Some(test)) => self.program.skips.entry(test.clone()).or_default(),
            _ => &mut self.program.stray,
        };
        reasons.insert(skip.to_owned());
    }

    /// A program that ended without a result was killed, or ended itself.
    fn died(&mut self) {
        if self.section != Section::Outside {
            self.tally
                .failed
                .push("a test program ended without a result: see above".to_owned());
            self.section = Section::Outside;
            self.program = Program::default();
        }
    }

    fn finish(&mut self, counts: &str) {
        let count = |what: &str| -> usize {
            counts
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                .next()
                .unwrap_or(0)
        };
        let program = std::mem::take(&mut self.program);
        self.section = Section::Outside;
        self.tally.passed += count("passed").saturating_sub(program.skips.len());
        for (test, reasons) in program.skips {
            let reasons: Vec<String> = reasons.into_iter().collect();
            let reasons = reasons.join("; ");
            // A test normally names itself.
            let named = test
                .rsplit("::")
                .next()
                .is_some_and(|name| reasons.starts_with(name));
            self.tally.skipped.push(if named {
                reasons
            } else {
                format!("{test}: {reasons}")
            });
        }
        self.tally.skipped.extend(program.stray);
        self.tally
            .skipped
            .extend(names(program.ignored, count("ignored"), "ignored"));
        self.tally
            .failed
            .extend(names(program.failed, count("failed"), "failed"));
    }
}

/// The names, made as many as libtest counted.
fn names(mut names: Vec<String>, count: usize, what: &str) -> Vec<String> {
    names.resize(
        count,
        format!("a test whose name could not be read: {what}"),
    );
    names
}

/// `running 3 tests`.
fn is_start(line: &str) -> bool {
    line.strip_prefix("running ")
        .and_then(|rest| {
            rest.strip_suffix(" tests")
                .or_else(|| rest.strip_suffix(" test"))
        })
        .is_some_and(|count| count.parse::<usize>().is_ok())
}

/// `---- some::test stdout ----`.
fn block_name(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `test some::test ... ignored, reason`.
fn ignored_name(line: &str) -> Option<String> {
    let (name, reason) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let reason = reason.strip_prefix(", ").unwrap_or("marked #[ignore]");
    Some(format!("{name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, success: bool) -> (Tally, String) {
        let mut reader = Reader::default();
        let shown: Vec<&str> = output.lines().filter(|line| reader.line(line)).collect();
        (reader.end(success, "cargo test"), shown.join("\n"))
    }

    const PASSING: &str = "
running 4 tests
test a::plain ... ok
test a::needs_kvm ... ok
test later ... ignored
test slow ... ignored, takes an hour

successes:

---- a::plain stdout ----
some words

---- a::needs_kvm stdout ----
SKIPPED: needs_kvm: /dev/kvm is not there


successes:
    a::needs_kvm
    a::plain

test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn a_skipped_test_has_not_passed() {
        let (tally, shown) = read(PASSING, true);
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, Vec::<String>::new());
        assert_eq!(
            tally.skipped,
            [
                "needs_kvm: /dev/kvm is not there",
                "later: marked #[ignore]",
                "slow: takes an hour"
            ]
        );
        assert!(!shown.contains("some words"), "{shown}");
        assert!(shown.contains("test a::plain ... ok"), "{shown}");
        assert!(shown.contains("test result: ok. 2 passed"), "{shown}");
    }

    #[test]
    fn a_failed_test_is_named_and_shown_even_if_it_says_it_was_skipped() {
        let output = "
running 2 tests
test good ... ok
test bad ... FAILED

successes:

successes:
    good

failures:

---- bad stdout ----
SKIPPED: bad: no such thing
    indented output
thread 'bad' panicked at src/lib.rs:1:1


failures:
    bad

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let (tally, shown) = read(output, false);
        let expected = Tally {
            passed: 1,
            failed: vec!["bad".to_owned()],
            skipped: vec![],
        };
        assert_eq!(tally, expected);
        assert!(shown.contains("thread 'bad' panicked"), "{shown}");
    }

    #[test]
    fn programs_add_up_and_one_that_dies_has_failed() {
        let died = "running 2 tests\ntest first ... ok\n";
        let (tally, _) = read(&format!("{PASSING}{died}{PASSING}"), false);
        assert_eq!(
            (tally.passed, tally.failed.len(), tally.skipped.len()),
            (2, 1, 6)
        );
        let (tally, _) = read(&format!("{PASSING}{died}"), false);
        assert_eq!((tally.passed, tally.failed.len()), (1, 1));
    }

    #[test]
    fn a_command_that_fails_without_a_test_has_failed() {
        let (tally, _) = read("", false);
        assert_eq!(tally.failed, ["cargo test: see above"]);
        assert_eq!(
            tally.to_string().lines().last(),
            Some("0 passed, 1 failed, 0 skipped")
        );
    }

    #[test]
    fn several_reasons_of_one_test_are_one_skip() {
        let output = PASSING.replace(
            "SKIPPED: needs_kvm: /dev/kvm is not there",
            "SKIPPED: half: no kvm\nSKIPPED: rest: no cgroup\nSKIPPED: half: no kvm",
        );
        let (tally, _) = read(&output, true);
        assert_eq!(tally.passed, 1);
        assert_eq!(
            tally.skipped.first().map(String::as_str),
            Some("a::needs_kvm: half: no kvm; rest: no cgroup")
        );
    }

    #[test]
    fn lines_between_programs_mean_nothing() {
        let noise = "SKIPPED: not a test: a build script\nfailures:\n    x\nrunning late\n";
        let (tally, shown) = read(&format!("{noise}{PASSING}"), true);
        assert_eq!(
            (tally.passed, tally.failed.len(), tally.skipped.len()),
            (1, 0, 3)
        );
        assert!(shown.contains("running late"), "{shown}");
    }
}
