//! What the process takes of the host's memory.

/// The most resident memory at any time so far, in bytes; `None` where the system does not tell.
pub fn peak_host_bytes() -> Option<u64> {
    bytes("VmHWM:")
}

/// Resident memory now, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    bytes("VmRSS:")
}

fn bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_told() {
        let before = resident_bytes().expect("Linux tells");
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident_bytes().expect("Linux tells");
        assert!(after >= before + (60 << 20), "{before} bytes, then {after} with {} more", held.len());
        assert!(peak_host_bytes().expect("Linux tells") >= after - (1 << 20));
    }
}
