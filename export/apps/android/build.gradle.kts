// A library module: build it alone, or copy the folder into an app and say include(":twinhash-query") there.
// The test runs on a phone or an emulator: gradle connectedDebugAndroidTest -Ptwinhash.bundle=FOLDER
import javax.inject.Inject

plugins {
    id("com.android.library") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.2.20"
}

android {
    namespace = "twinhash.query"
    compileSdk = 36

    defaultConfig {
        minSdk = 28 // ImageDecoder; without PhotoDecoder.kt 21, which LiteRT asks for
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    api("com.google.ai.edge.litert:litert:1.4.2") // has Interpreter, which 2.0 has not
    api("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
    androidTestImplementation("androidx.test:runner:1.7.0")
    androidTestImplementation("androidx.test.ext:junit:1.3.0")
}

/** Copies what the test reads of a bundle into its assets. */
abstract class BundleAssets @Inject constructor(private val files: FileSystemOperations) : DefaultTask() {
    @get:InputDirectory
    abstract val bundle: DirectoryProperty

    @get:OutputDirectory
    abstract val output: DirectoryProperty

    @TaskAction
    fun copy() {
        files.sync {
            from(bundle) { include("codespace.json", "golden.json", "golden/**", "*.tflite") }
            into(output)
        }
    }
}

val bundleAssets = tasks.register<BundleAssets>("bundleAssets") {
    bundle.set(layout.dir(providers.gradleProperty("twinhash.bundle").map(::File)))
}

androidComponents {
    onVariants { variant ->
        variant.androidTest?.sources?.assets?.addGeneratedSourceDirectory(bundleAssets, BundleAssets::output)
    }
}
