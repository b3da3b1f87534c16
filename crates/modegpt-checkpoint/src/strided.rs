//! Views whose elements do not lie in row-major order, such as the transposed tensors of a `PyTorch` file.

use crate::Error;

/// A view is read in one piece while that costs no more than this many times its own size.
const WASTE_LIMIT: u64 = 2;

/// Reads a view and returns its elements in row-major order, `element_bytes` each.
///
/// `read(offset, buf)` fills `buf` from `offset` elements after the first one of the view. Memory is at most the
/// result plus [`WASTE_LIMIT`] times the same again, however far apart the elements lie.
///
/// # Shapes
/// - `shape` and `strides` (in elements): as many as dimensions; the view has at least one element
pub(crate) fn gather(
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
    element_bytes: usize,
    shape: &[usize],
    strides: &[usize],
) -> Result<Vec<u8>, Error> {
    let n_elements: usize = shape.iter().product();
    let mut dims = destination_dims(shape, strides);
    // The outermost dimension in memory comes first: its slices are then separate pieces of the file.
    dims.sort_by_key(|dim| std::cmp::Reverse(dim.stride));
    let mut out = vec![0; n_elements * element_bytes];
    if span(&dims) <= WASTE_LIMIT * n_elements as u64 {
        let mut piece = vec![0; span(&dims) as usize * element_bytes];
        read(0, &mut piece)?;
        scatter(&piece, &mut out, 0, element_bytes, &dims);
        return Ok(out);
    }
    // A span above one element has a dimension above one, hence a first one.
    let (outer, inner) = (&dims[0], &dims[1..]);
    let inner_elements: usize = inner.iter().map(|dim| dim.size).product();
    if span(inner) > WASTE_LIMIT * inner_elements.max(1) as u64 {
        return gather_each(read, element_bytes, &dims, out);
    }
    let mut piece = vec![0; span(inner) as usize * element_bytes];
    for index in 0..outer.size {
        read(index as u64 * outer.stride as u64, &mut piece)?;
        scatter(&piece, &mut out, index * outer.step, element_bytes, inner);
    }
    Ok(out)
}

/// The last resort for views that are sparse in more than one dimension: one read for each element.
fn gather_each(
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
    element_bytes: usize,
    dims: &[Dim],
    mut out: Vec<u8>,
) -> Result<Vec<u8>, Error> {
    let mut failure = Ok(());
    for_each_element(dims, |from, to| {
        if failure.is_ok() {
            failure = read(from as u64, &mut out[to * element_bytes..][..element_bytes]);
        }
    });
    failure.map(|()| out)
}

/// One dimension: its size, its stride in the file and its step in the result, both in elements.
struct Dim {
    size: usize,
    stride: usize,
    step: usize,
}

/// The dimensions that matter, with the row-major steps of the result.
fn destination_dims(shape: &[usize], strides: &[usize]) -> Vec<Dim> {
    let mut step = 1;
    let mut dims = Vec::with_capacity(shape.len());
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 {
            dims.push(Dim { size, stride, step });
        }
        step *= size;
    }
    dims
}

/// How many elements lie between the first and the last of a view, both included.
fn span(dims: &[Dim]) -> u64 {
    1 + dims.iter().map(|dim| (dim.size as u64 - 1) * dim.stride as u64).sum::<u64>()
}

/// Copies the elements of one piece to their places, the first of them to element `start` of `out`.
fn scatter(piece: &[u8], out: &mut [u8], start: usize, element_bytes: usize, dims: &[Dim]) {
    for_each_element(dims, |from, to| {
        let (from, to) = (from * element_bytes, (start + to) * element_bytes);
        out[to..to + element_bytes].copy_from_slice(&piece[from..from + element_bytes]);
    });
}

/// Calls `visit(place in the file, place in the result)` for every element, counting like an odometer.
fn for_each_element(dims: &[Dim], mut visit: impl FnMut(usize, usize)) {
    let mut index = vec![0; dims.len()];
    let (mut from, mut to) = (0, 0);
    loop {
        visit(from, to);
        let mut place = dims.len();
        loop {
            let Some(next) = place.checked_sub(1) else { return };
            place = next;
            let dim = &dims[place];
            index[place] += 1;
            from += dim.stride;
            to += dim.step;
            if index[place] < dim.size {
                break;
            }
            from -= dim.stride * dim.size;
            to -= dim.step * dim.size;
            index[place] = 0;
        }
    }
}

/// The strides of a row-major tensor, in elements.
pub(crate) fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    destination_dims(shape, strides).iter().all(|dim| dim.stride == dim.step)
}
