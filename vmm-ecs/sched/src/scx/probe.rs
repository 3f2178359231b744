//! What the running kernel offers this controller.

use std::fs;
use std::path::Path;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, FuncProto};
use rustix::process::getpid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};

/// Whether the kernel has the class at all.
pub(super) fn has_sched_ext() -> bool {
    Path::new("/sys/kernel/sched_ext").exists()
}

/// One thing this controller needs or makes use of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// What was found; as an error where that keeps this controller from working.
    pub found: Result<String, String>,
}

/// Looks at everything, and changes nothing.
#[must_use]
pub fn probe() -> Vec<Finding> {
    let finding = |what, found| Finding { what, found };
    let mut findings = vec![finding("sched_ext", sched_ext())];
    if !has_sched_ext() {
        return findings;
    }
    findings.push(finding("kernel type information (BTF)", btf()));
    findings.push(finding("kernel functions of sched_ext", functions()));
    findings.push(finding("weights and limits of cgroups", cgroups()));
    findings.push(finding("core scheduling", core_scheduling()));
    findings
}

fn sched_ext() -> Result<String, String> {
    let state = fs::read_to_string("/sys/kernel/sched_ext/state")
        .map_err(|_| "this kernel has none (CONFIG_SCHED_CLASS_EXT)".to_owned())?;
    let name = fs::read_to_string("/sys/kernel/sched_ext/root/ops").unwrap_or_default();
    match (state.trim(), name.trim()) {
        ("disabled", _) => Ok("there, not in use".to_owned()),
        (_, "ecs") => Ok("in use by vmm-ecs".to_owned()),
        (_, name) => Err(format!("in use by the scheduler {name:?}: end it first")),
    }
}

fn btf() -> Result<String, String> {
    let path = "/sys/kernel/btf/vmlinux";
    fs::metadata(path)
        .map(|_| "there".to_owned())
        .map_err(|error| format!("{path}: {error} (CONFIG_DEBUG_INFO_BTF)"))
}

/// Those that not every kernel with sched_ext has, or has as it should.
fn functions() -> Result<String, String> {
    let needed = [
        "bpf_iter_scx_dsq_new",
        "scx_bpf_create_dsq",
        "scx_bpf_dsq_move",
        "scx_bpf_dsq_peek",
        "scx_bpf_kick_cpu",
        "scx_bpf_task_set_dsq_vtime",
        "scx_bpf_task_set_slice",
    ];
    let btf = Btf::from_vmlinux().map_err(|error| error.to_string())?;
    let of = |is_so: fn(&Btf<'_>, &str) -> bool| {
        let names = needed.into_iter().filter(|name| is_so(&btf, name));
        names.collect::<Vec<_>>().join(", ")
    };
    let (missing, unusable) = (of(is_missing), of(is_unusable));
    if !missing.is_empty() {
        return Err(format!("missing: {missing}; a newer kernel has them"));
    }
    if !unusable.is_empty() {
        return Err(format!(
            "this kernel was built with type information that lets no scheduler call {unusable}; \
             another build of it has to mend that"
        ));
    }
    Ok("all there".to_owned())
}

fn is_missing(btf: &Btf<'_>, name: &str) -> bool {
    btf.type_by_name::<Func<'_>>(name).is_none()
}

/// Of a function that takes an argument from the kernel itself, the kernel wants two types: that one
/// by the name `*_impl`, and one without it, for programs. Builds of Linux 7.2 have one only.
fn is_unusable(btf: &Btf<'_>, name: &str) -> bool {
    let takes_more = btf.type_by_name::<Func<'_>>(name).is_some_and(|func| {
        let proto: Option<FuncProto<'_>> = func.next_type().and_then(|of| of.try_into().ok());
        proto.is_some_and(|proto| {
            let last = proto.iter().last().and_then(|param| param.name);
            last.is_some_and(|name| name == "aux")
        })
    });
    takes_more && is_missing(btf, &format!("{name}_impl"))
}

fn cgroups() -> Result<String, String> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.split_whitespace().any(|name| name == "cpu") {
        Ok("cpu.weight and cpu.max are kept, of VMs and of all others".to_owned())
    } else {
        Ok(
            "no cgroup v2 with the cpu controller: weights are those of the configuration"
                .to_owned(),
        )
    }
}

fn core_scheduling() -> Result<String, String> {
    let smt = fs::read_to_string("/sys/devices/system/cpu/smt/active").unwrap_or_default();
    let cookie = core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread);
    Ok(match (smt.trim(), cookie) {
        ("1", Ok(_)) => {
            "CPUs share cores, and what VMMs ask for is kept: no core runs two VMs at once"
        }
        ("1", Err(_)) => "none (CONFIG_SCHED_CORE): VMs are on the CPUs of one core at once",
        _ => "no CPUs share cores",
    }
    .to_owned())
}
