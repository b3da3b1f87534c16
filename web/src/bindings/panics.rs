//! What became of a fault of the program.

use std::cell::RefCell;

use js_sys::Function;
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

thread_local! {
    static LISTENER: RefCell<Option<Function>> = const { RefCell::new(None) };
}

/// From now on `listener` is called with the message and place of every panic, before the module stops for good.
#[wasm_bindgen(js_name = onPanic)]
pub fn on_panic(listener: Function) {
    LISTENER.with(|slot| *slot.borrow_mut() = Some(listener));
    std::panic::set_hook(Box::new(|info| {
        let message = JsValue::from_str(&info.to_string());
        LISTENER.with(|slot| {
            if let Some(listener) = slot.borrow().as_ref() {
                // There is nobody left to tell of an exception in the listener.
                drop(listener.call1(&JsValue::NULL, &message));
            }
        });
    }));
}
