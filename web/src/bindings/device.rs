//! What computes.

use modegpt::calibration::GramPath;
use modegpt::model_runtime::Compute;
use wasm_bindgen::prelude::wasm_bindgen;

use super::sentence;

/// A device that is ready.
#[wasm_bindgen]
pub struct Device {
    pub(crate) compute: Compute,
    pub(crate) gram_path: GramPath,
    name: String,
}

#[wasm_bindgen]
impl Device {
    /// The processor, one thread.
    pub fn cpu() -> Self {
        Self { compute: Compute::host(), gram_path: GramPath::Host, name: "cpu".to_owned() }
    }

    /// The graphics card. At most once in the life of a module.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn webgpu() -> Result<Self, String> {
        let (device, setup) = burn::tensor::Device::wgpu_options().init_with_setup_async().await.map_err(sentence)?;
        let limits = setup.device.limits();
        let limit = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let info = setup.adapter.get_info();
        let kind = if info.name.is_empty() { "graphics card" } else { info.name.as_str() };
        Ok(Self {
            compute: Compute::card(device, usize::try_from(limit).unwrap_or(usize::MAX)),
            gram_path: GramPath::DeviceF32,
            name: format!("webgpu: {kind}"),
        })
    }

    /// What to call it.
    #[wasm_bindgen(getter)]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// The most bytes that one tensor may have.
    #[wasm_bindgen(getter, js_name = maxTensorBytes)]
    pub fn max_tensor_bytes(&self) -> f64 {
        self.compute.max_tensor_bytes as f64
    }

    /// Multiplies two matrices of ones and gives an element of the product, so that the page can take the time.
    ///
    /// # Errors
    /// What the device said.
    #[wasm_bindgen(js_name = multiply)]
    pub async fn multiply(&self, n: usize) -> Result<f32, String> {
        let ones = self.compute.tensor(vec![1.0; n * n], [n, n]);
        let corner = ones.clone().matmul(ones).narrow(0, 0, 1).narrow(1, 0, 1);
        Ok(self.compute.read(corner).await.map_err(sentence)?[0])
    }
}
