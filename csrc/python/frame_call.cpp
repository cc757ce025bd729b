// dyncp_kernels._frame_call: frames or hops of the streaming engine as a Python function.  The way through torch's
// dispatcher, or through checks in Python, would take a gated network a tenth of its time: the weights of every frame
// push the interpreter out of the caches.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
// Python's headers come first.
#include <ATen/dlpack.h>

#include <algorithm>
#include <cstdint>

namespace {

// As in csrc/torch/stream_batch.h, without torch's headers.
struct Shape {
  const int64_t* sizes;
  int64_t dims;
};

// One of the functions of csrc/torch/stream_calls.cpp.
using Function = int (*)(const void* packed, void* state, Shape state_shape, const float* values, Shape shape,
                         double shift, float* out);

struct Torch {
  PyObject* tensor;      // the class
  PyObject* empty_like;  // the function
  const DLPackExchangeAPI* exchange;
};

Torch torch;

// Views a plain tensor on the CPU; false for anything else.
bool view(PyObject* object, DLTensor& tensor) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != torch.tensor) return false;
  if (torch.exchange->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  return tensor.device.device_type == kDLCPU;
}

void* data_of(const DLTensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

Shape shape_of(const DLTensor& tensor) { return {tensor.shape, tensor.ndim}; }

bool is_contiguous(const DLTensor& tensor, DLDataTypeCode code, int bits) {
  if (tensor.dtype.code != code || tensor.dtype.bits != bits || tensor.dtype.lanes != 1) return false;
  int64_t stride = 1;
  for (int32_t dim = tensor.ndim; dim-- > 0; stride *= tensor.shape[dim]) {
    if (tensor.strides != nullptr && tensor.shape[dim] != 1 && tensor.strides[dim] != stride) return false;
  }
  return true;
}

bool same_shape(const DLTensor& a, const DLTensor& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// (packed, state, values, out, shift) -> out, or a new tensor where out is None; None where nothing was done.
PyObject* call(PyObject* address, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "_frame_call: a function takes packed, state, values, out and shift");
    return nullptr;
  }
  DLTensor packed, state, values, masks;
  if (!view(arguments[0], packed) || !view(arguments[1], state) || !is_contiguous(state, kDLUInt, 8) ||
      !view(arguments[2], values) || !is_contiguous(values, kDLFloat, 32)) {
    Py_RETURN_NONE;
  }
  const double shift = PyFloat_AsDouble(arguments[4]);
  if (shift == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  PyObject* out = arguments[3];
  if (out == Py_None) {
    out = PyObject_CallFunctionObjArgs(torch.empty_like, arguments[2], nullptr);
    if (out == nullptr) return nullptr;
  } else {
    Py_INCREF(out);
  }
  bool done = view(out, masks) && is_contiguous(masks, kDLFloat, 32) && same_shape(masks, values);
  if (done) {
    const auto function = reinterpret_cast<Function>(PyLong_AsVoidPtr(address));
    PyThreadState* thread = PyEval_SaveThread();
    done = function(data_of(packed), data_of(state), shape_of(state), static_cast<const float*>(data_of(values)),
                    shape_of(values), shift, static_cast<float*>(data_of(masks))) != 0;
    PyEval_RestoreThread(thread);
  }
  if (done) return out;
  Py_DECREF(out);
  Py_RETURN_NONE;
}

PyMethodDef call_definition = {"frame_call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)),
                               METH_FASTCALL, nullptr};

// The address of a function of the extension, as an int, to its Python function.
PyObject* function(PyObject*, PyObject* address) {
  if (PyLong_AsVoidPtr(address) == nullptr) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "_frame_call.function: address must not be 0");
    return nullptr;
  }
  return PyCFunction_NewEx(&call_definition, address, nullptr);
}

PyMethodDef functions[] = {{"function", function, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_frame_call", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

// False, with a Python error, where this torch does not offer its tensors to C in the form that is known here.
bool find_torch() {
  PyObject* module = PyImport_ImportModule("torch");
  if (module == nullptr) return false;
  torch.tensor = PyObject_GetAttrString(module, "Tensor");
  torch.empty_like = PyObject_GetAttrString(module, "empty_like");
  Py_DECREF(module);
  if (torch.tensor == nullptr || torch.empty_like == nullptr) return false;
  PyObject* capsule = PyObject_GetAttrString(torch.tensor, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) return false;
  // Torch keeps the table for as long as the process lives.
  torch.exchange = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (torch.exchange == nullptr) return false;
  if (torch.exchange->header.version.major == DLPACK_MAJOR_VERSION) return true;
  PyErr_Format(PyExc_ImportError, "_frame_call: torch must speak version %d of DLPack (got %d)", DLPACK_MAJOR_VERSION,
               static_cast<int>(torch.exchange->header.version.major));
  return false;
}

}  // namespace

PyMODINIT_FUNC PyInit__frame_call() { return find_torch() ? PyModule_Create(&module_definition) : nullptr; }
