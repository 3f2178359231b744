//! Histories with the policy's answers, in `golden.txt`: one operation a line, with its answer behind
//! an equals sign; an empty line ends a history. A change of the policy shows there.

use crate::op::Op;

/// One history.
pub(crate) struct Golden(pub(crate) Vec<(Op, Vec<u64>)>);

/// Numbers of one line.
pub(crate) fn numbers(line: &str) -> Vec<u64> {
    let words = line.split_ascii_whitespace();
    words.map(|word| word.parse().unwrap()).collect()
}

impl Golden {
    pub(crate) fn all() -> Vec<Self> {
        let step = |line: &str| {
            let (op, answer) = line.split_once('=').unwrap();
            (Op::parse(op), numbers(answer))
        };
        let traces = include_str!("golden.txt").split("\n\n");
        traces
            .map(|trace| Self(trace.lines().map(step).collect()))
            .collect()
    }

    pub(crate) fn ops(&self) -> impl Iterator<Item = &Op> {
        self.0.iter().map(|(op, _)| op)
    }

    pub(crate) fn answers(&self) -> Vec<Vec<u64>> {
        self.0.iter().map(|(_, answer)| answer.clone()).collect()
    }
}
