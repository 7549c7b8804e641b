/* Empty libraries that let NVIDIA's Python bindings load, and CUDA over the memory of the host.

   cc -shared -fPIC -D NVINFER  stubs.c   libnvinfer.so.N, libnvinfer_plugin.so.N, libnvonnxparser.so.N: no object comes of them
   cc -shared -fPIC -D CUDART   stubs.c   libcudart.so.N: what Polygraphy calls
   cc -shared -fPIC -D CUDA     stubs.c   libcuda.so.1: two devices, or none where STAND_IN_DEVICE is empty, of the driver STAND_IN_DRIVER
*/
#include <stdlib.h>
#include <string.h>

#ifdef NVINFER
void *createInferBuilder_INTERNAL(void *logger, int version) { return NULL; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *getBuilderPluginRegistry(int capability) { return NULL; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return NULL; }
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }
#endif

#ifdef CUDART
int cudaStreamCreate(void **stream) { *stream = malloc(1); return 0; }
int cudaStreamDestroy(void *stream) { free(stream); return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaMalloc(void **memory, size_t size) {
    const char *error = getenv("STAND_IN_CUDA_ERROR");
    *memory = malloc(size ? size : 1);
    return error ? atoi(error) : 0;
}
int cudaFree(void *memory) { free(memory); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memcpy(to, from, size); return 0; }
#endif

#ifdef CUDA
static const char *device(void) { const char *name = getenv("STAND_IN_DEVICE"); return name ? name : ""; }
int cuInit(unsigned flags) { return *device() ? 0 : 100; }
int cuDriverGetVersion(int *version) { *version = atoi(getenv("STAND_IN_DRIVER")); return 0; }
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDeviceGetCount(int *count) { *count = *device() ? 2 : 0; return 0; }
int cuDeviceGet(int *handle, int ordinal) { *handle = ordinal; return ordinal > 1 ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int handle) { strncpy(name, device(), size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int handle) { *value = attribute == 75 ? 8 : 9; return 0; }
#endif
