//! What the program runs on.

use serde::Serialize;

/// Processor and memory of the host.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    arch: &'static str,
    os: &'static str,
    processor: Option<String>,
    cores: usize,
    /// Vector instructions that arithmetic can use here.
    simd: Vec<&'static str>,
    memory_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

impl Host {
    pub(super) fn look() -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
            processor: field(&processor, "model name").map(str::to_owned),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
            memory_bytes: kib_field(&memory, "MemTotal"),
            available_bytes: kib_field(&memory, "MemAvailable"),
        }
    }

    /// Lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        use crate::printer::bytes;
        let name = self.processor.as_deref().unwrap_or("processor");
        let simd = if self.simd.is_empty() { "no vector instructions known".to_owned() } else { self.simd.join(", ") };
        let mut lines = vec![format!("host     {name}, {} cores, {} on {}, {simd}", self.cores, self.arch, self.os)];
        if let Some(all) = self.memory_bytes {
            let free = self.available_bytes.map_or(String::new(), |free| format!(", {} available", bytes(free)));
            lines.push(format!("memory   {}{free}", bytes(all)));
        }
        lines
    }
}

/// The value of a line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name).map(|(_, v)| v.trim())
}

/// The value of a line `name: 123 kB`, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let kib: u64 = field(text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn simd() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let known = [
        ("SSE4.2", has!("sse4.2")),
        ("AVX", has!("avx")),
        ("AVX2", has!("avx2")),
        ("FMA", has!("fma")),
        ("AVX-512", has!("avx512f")),
    ];
    known.into_iter().filter_map(|(name, found)| found.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn simd() -> Vec<&'static str> {
    // Part of the architecture.
    vec!["NEON"]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:       2048 kB\nmodel name\t: Some CPU @ 3 GHz\nOdd: 12 pages\n";
        assert_eq!(kib_field(text, "MemTotal"), Some(2 << 20));
        assert_eq!(field(text, "model name"), Some("Some CPU @ 3 GHz"));
        assert_eq!(kib_field(text, "Odd"), None);
        assert_eq!(kib_field("MemTotal: 99999999999999999999 kB", "MemTotal"), None);
        assert_eq!(kib_field("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
    }
}
