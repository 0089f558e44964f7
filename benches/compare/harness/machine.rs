//! What this machine is, and what runs where on it.

use std::env;
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use core_affinity::CoreId;
use rustix::time::{ClockId, clock_gettime};

/// Keeps the calling thread, and those it starts, on a core, if there are several.
pub(crate) fn pin(core: usize) {
    let cores = cores();
    if let Some(core) = cores.get(core).filter(|_| cores.len() > 1) {
        core_affinity::set_for_current(*core);
    }
}

/// The cores of this process. Asked once: who is pinned sees one core only.
pub(crate) fn cores() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default())
}

/// How long the threads of this process have run on a core.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Processor, cores and system, for the head of a report.
pub(crate) fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(env::consts::ARCH, |(_, name)| name);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {} cores, {} {}", cores().len(), env::consts::OS, release.trim())
}
