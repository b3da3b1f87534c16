//! Finding a device by name.

use burn::tensor::Device;
use burn::tensor::wgpu::{WgpuBackend, WgpuSetup};
use modegpt::calibration::GramPath;
use modegpt::model_runtime::Compute;

use crate::args::DeviceName;

/// A device that is ready, and what to call it.
pub(crate) struct FoundDevice {
    pub(crate) compute: Compute,
    pub(crate) gram_path: GramPath,
    /// Such as `cpu (2 threads)` or `vulkan: NVIDIA H200`.
    pub(crate) name: String,
    /// The most bytes that one tensor may have, where there is a limit.
    pub(crate) binding_limit: Option<u64>,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
#[error("no device `{name}`: {reason}")]
pub(crate) struct NoDevice {
    name: &'static str,
    reason: String,
}

/// Opens the device called `name`.
pub(crate) fn open(name: DeviceName) -> Result<FoundDevice, NoDevice> {
    match name {
        DeviceName::Cpu => Ok(cpu()),
        DeviceName::Vulkan => card("vulkan", WgpuBackend::Vulkan),
        DeviceName::Gl => card("gl", WgpuBackend::Gl),
        DeviceName::Cuda => cuda(),
        DeviceName::Auto => Ok(auto()),
    }
}

/// The processor.
pub(crate) fn cpu() -> FoundDevice {
    let threads = rayon_threads();
    FoundDevice {
        compute: Compute::host(),
        gram_path: GramPath::Host,
        name: format!("cpu ({threads} threads)"),
        binding_limit: None,
    }
}

/// Sets how many threads compute; the first call counts.
pub(crate) fn set_threads(threads: Option<usize>) {
    // Both libraries that compute on the processor use the one global pool of threads.
    let threads = threads.unwrap_or(0);
    drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
    faer::set_global_parallelism(faer::Par::rayon(threads));
}

fn rayon_threads() -> usize {
    rayon::current_num_threads()
}

fn auto() -> FoundDevice {
    if let Ok(found) = cuda() {
        return found;
    }
    match setup(WgpuBackend::Vulkan) {
        // A software renderer is slower than the processor's own code.
        Ok((device, setup)) if !is_software(&setup) => from_setup("vulkan", device, &setup),
        _ => cpu(),
    }
}

fn card(name: &'static str, api: WgpuBackend) -> Result<FoundDevice, NoDevice> {
    let (device, setup) = setup(api).map_err(|reason| NoDevice { name, reason })?;
    Ok(from_setup(name, device, &setup))
}

/// Drivers may panic while they are asked; that is no reason for the program to end.
fn setup(api: WgpuBackend) -> Result<(Device, WgpuSetup), String> {
    let init = || Device::wgpu_options().graphics_api(api).init_with_setup();
    crate::panics::caught(init)?.map_err(|error| error.to_string())
}

fn is_software(setup: &WgpuSetup) -> bool {
    setup.adapter.get_info().device_type == burn::tensor::wgpu::wgpu::DeviceType::Cpu
}

fn from_setup(api: &str, device: Device, setup: &WgpuSetup) -> FoundDevice {
    let limits = setup.device.limits();
    let limit = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    let info = setup.adapter.get_info();
    FoundDevice {
        compute: Compute::card(device, usize::try_from(limit).unwrap_or(usize::MAX)),
        gram_path: GramPath::DeviceF32,
        name: format!("{api}: {}", info.name),
        binding_limit: Some(limit),
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<FoundDevice, NoDevice> {
    let found = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
    let Some(device) = found.into_iter().next() else {
        return Err(NoDevice { name: "cuda", reason: "no NVIDIA card, or no driver, was found".to_owned() });
    };
    let name = device.identity().map_or("NVIDIA card".to_owned(), |identity| identity.name);
    Ok(FoundDevice {
        compute: Compute::card(device, 2 << 30),
        // f32 products are rounded to TF32 there.
        gram_path: GramPath::DeviceF64,
        name: format!("cuda: {name}"),
        binding_limit: None,
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<FoundDevice, NoDevice> {
    Err(NoDevice { name: "cuda", reason: "this program was built without the feature `cuda`".to_owned() })
}
